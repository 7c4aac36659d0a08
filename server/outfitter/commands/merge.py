"""`outfitter merge`: a loadout as one task vector file, or as a dense checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from outfitter.commands.checkpoints import ShardOption, write_checkpoint
from outfitter.commands.console import count_progress
from outfitter.commands.files import check_float_dtype, print_file
from outfitter.commands.loadouts import (
    BaseOption,
    MethodOption,
    SetOption,
    SpecOption,
    StoreOption,
    VectorsArgument,
    check_base,
    check_selections,
    list_methods,
    read_loadout,
)
from outfitter.config import InvalidConfig, parse_size
from taskvectors.checkpoint import Checkpoint
from taskvectors.merge.spec_file import SUFFIX, ResolvedSpec


def merge(
    out_path: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="*.safetensors: a task vector file; else a checkpoint's new folder."
        ),
    ],
    vectors: VectorsArgument = None,
    spec: SpecOption = None,
    method: MethodOption = None,
    settings: SetOption = None,
    store: StoreOption = None,
    base: BaseOption = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the file's values: bf16, fp16, fp32; else as computed.")
    ] = None,
    max_shard_size: ShardOption = None,
    _list: Annotated[
        bool,
        typer.Option(
            "--list-methods",
            callback=list_methods,
            is_eager=True,
            help="Print the methods with their parameters.",
        ),
    ] = False,
) -> None:
    """Merge task vectors into one file, or with --base into a dense checkpoint."""
    is_file = out_path.suffix == SUFFIX
    _check_options(is_file, base, dtype, max_shard_size)
    loadout = read_loadout(vectors, spec, method, settings, store)
    checkpoint = None if base is None else Checkpoint.open(base)
    if is_file:
        _check_output(out_path, loadout, checkpoint)
    check_selections(loadout, checkpoint)
    if is_file:
        write_file(loadout, checkpoint, out_path, dtype)
    else:
        assert checkpoint is not None
        write_checkpoint(loadout, checkpoint, out_path, max_shard_size)


def write_file(
    loadout: ResolvedSpec, base: Checkpoint | None, out_file: Path, dtype: str | None
) -> None:
    """Write the merged task vector file with a progress bar."""
    from taskvectors.merge import write_merged
    from taskvectors.merge.spec_merge import open_merge

    with open_merge(loadout, base) as (merged, metadata), count_progress() as bar:
        if base is not None:
            check_base(merged.base, base)
        task = bar.add_task("merging", total=len(merged.shapes))
        digest = write_merged(
            merged,
            out_file,
            metadata,
            value_dtype=dtype,
            progress=lambda done, total, _: bar.update(task, completed=done, total=total),
        )
    print_file(out_file, digest, out_file.stat().st_size)


def _check_output(out_file: Path, loadout: ResolvedSpec, base: Checkpoint | None) -> None:
    """Raise InvalidConfig for a file that cannot be written, or whose loss would destroy inputs."""
    if not out_file.absolute().parent.is_dir():
        raise InvalidConfig(f"there is no folder {out_file.parent} to write {out_file.name} to")
    if not out_file.exists():
        return
    if any(map(out_file.samefile, loadout.paths.values())):
        raise InvalidConfig(f"{out_file} is one of the vectors to merge; name another file")
    if base is not None and any(map(out_file.samefile, base.files)):
        raise InvalidConfig(f"{out_file} holds weights of the base; choose another name")


def _check_options(
    is_file: bool, base: Path | None, dtype: str | None, max_shard_size: str | None
) -> None:
    check_float_dtype(dtype)
    if is_file and max_shard_size is not None:
        raise InvalidConfig("--max-shard-size is for checkpoints; a task vector file is one file")
    if not is_file and dtype is not None:
        raise InvalidConfig("--dtype is for task vector files; a checkpoint has its base's dtypes")
    if not is_file and base is None:
        raise InvalidConfig(f"a checkpoint needs --base; for a task vector file end -o in {SUFFIX}")
    if max_shard_size is not None:
        parse_size(max_shard_size)
