"""`outfitter export`: a loadout in the formats of other libraries."""

from pathlib import Path
from typing import Annotated

import typer

from outfitter.commands.checkpoints import ShardOption, write_checkpoint
from outfitter.commands.console import count_progress, out
from outfitter.commands.loadouts import (
    BaseOption,
    MethodOption,
    SetOption,
    SpecOption,
    StoreOption,
    VectorsArgument,
    check_base,
    check_selections,
    read_loadout,
)
from outfitter.config import InvalidConfig
from taskvectors.checkpoint import Checkpoint
from taskvectors.merge.spec_file import ResolvedSpec

FORMATS = ("peft", "shira", "checkpoint")


def export(
    to: Annotated[
        str,
        typer.Option(
            help="peft: a LoRA, where all is low-rank; shira: a PEFT SHiRA, where all is sparse;"
            " checkpoint: the merged model, which needs --base."
        ),
    ],
    folder: Annotated[Path, typer.Option("--out", "-o", help="A new folder.")],
    vectors: VectorsArgument = None,
    spec: SpecOption = None,
    method: MethodOption = None,
    settings: SetOption = None,
    store: StoreOption = None,
    base: BaseOption = None,
    max_shard_size: ShardOption = None,
) -> None:
    """Write a loadout as a PEFT adapter or as a dense checkpoint."""
    _check_options(to, base, max_shard_size)
    loadout = read_loadout(vectors, spec, method, settings, store)
    checkpoint = None if base is None else Checkpoint.open(base)
    check_selections(loadout, checkpoint)
    if to == "checkpoint":
        assert checkpoint is not None
        write_checkpoint(loadout, checkpoint, folder, max_shard_size)
    else:
        write_adapter(loadout, checkpoint, folder, to)


def write_adapter(loadout: ResolvedSpec, base: Checkpoint | None, folder: Path, to: str) -> None:
    """Write a PEFT folder with a progress bar, and say what was written."""
    from taskvectors.exchange import export_peft, export_shira
    from taskvectors.merge.spec_merge import open_merge

    with open_merge(loadout, base) as (merged, _), count_progress() as bar:
        if base is not None:
            check_base(merged.base, base)
        task = bar.add_task("writing", total=len(merged.shapes))

        def progress(done: int, total: int, _: str) -> None:
            bar.update(task, completed=done, total=total)

        if to == "peft":
            written = export_peft(merged, folder, base=base, progress=progress)
            facts = f"LoRA of {written.num_modules} modules, rank up to {written.max_rank}"
        else:
            facts = f"SHiRA, r={export_shira(merged, folder, progress=progress)}"
    out.print(f"{folder} {facts}, for {merged.base.name}", highlight=False, soft_wrap=True)


def _check_options(to: str, base: Path | None, max_shard_size: str | None) -> None:
    if to == "gguf":
        raise InvalidConfig(
            "there is no export to GGUF: export --to checkpoint, then run llama.cpp's"
            " convert_hf_to_gguf.py on that folder"
        )
    if to not in FORMATS:
        raise InvalidConfig(f"unsupported --to {to!r}; choose {', '.join(FORMATS)}")
    if to == "checkpoint" and base is None:
        raise InvalidConfig("--to checkpoint needs --base, the folder of the base")
    if to != "checkpoint" and max_shard_size is not None:
        raise InvalidConfig("--max-shard-size is for --to checkpoint")
