"""`outfitter import`: adapters of other libraries as task vector files."""

from pathlib import Path
from typing import Annotated

import typer

from outfitter.commands.console import err
from outfitter.commands.files import OutOption, check_float_dtype, print_file
from taskvectors.format import read_header


def import_adapter(
    adapter: Annotated[Path, typer.Argument(help="A folder with adapter_config.json.")],
    out_file: OutOption,
    base: Annotated[
        Path | None, typer.Option(help="The base's folder, to check against; SHiRA needs it.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="bf16, fp16, fp32; else as stored.")] = None,
) -> None:
    """Write a task vector file from a PEFT folder, LoRA or SHiRA, without loss."""
    from taskvectors.exchange import import_adapter as run

    check_float_dtype(dtype)
    digest = run(adapter, out_file, base_dir=base, value_dtype=dtype)
    if read_header(out_file).base.fingerprint is None:
        err.print("the base was not at hand, so it is not verified; --base checks it")
    print_file(out_file, digest, out_file.stat().st_size)
