"""Dense checkpoints from the command line, for `merge` and `export`."""

from pathlib import Path
from typing import Annotated

import typer

from outfitter.commands.console import count_progress, err, human_bytes, out
from outfitter.commands.loadouts import check_base
from outfitter.config import parse_size
from taskvectors.checkpoint import Checkpoint
from taskvectors.merge.spec_file import ResolvedSpec

ShardOption = Annotated[
    str | None,
    typer.Option(help="Largest weight file, such as 5GB; else divided as the base is."),
]


def write_checkpoint(
    loadout: ResolvedSpec, base: Checkpoint, folder: Path, max_shard_size: str | None
) -> None:
    """Write base + loadout with a progress bar, and say what was written."""
    from taskvectors.exchange import export_checkpoint, restoring
    from taskvectors.merge.spec_merge import open_merge

    size = None if max_shard_size is None else parse_size(max_shard_size)
    with (
        open_merge(loadout, base) as (merged, _),
        restoring(loadout, base) as restored,
        count_progress() as bar,
    ):
        task = bar.add_task("writing", total=len(base.names))
        written = export_checkpoint(
            merged,
            base,
            folder,
            max_shard_size=size,
            base_fingerprint=check_base(merged.base, base),
            restored=restored,
            progress=lambda done, total, _: bar.update(task, completed=done, total=total),
        )
    files = len(list(folder.glob("*.safetensors")))
    weights = f"{human_bytes(written.nbytes)} of weights in {files} file{'' if files == 1 else 's'}"
    line = f"{folder} {weights}, fingerprint {written.fingerprint}"
    out.print(line, highlight=False, soft_wrap=True)
    if restored is not None:
        err.print("this is the fine-tuned checkpoint, bit for bit: its fingerprint was checked")
