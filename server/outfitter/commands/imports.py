"""`outfitter import-lora`: adapters of other libraries as task vector files."""

from pathlib import Path
from typing import Annotated

import typer

from outfitter.commands.files import VALUE_DTYPES, FolderArgument, OutOption, print_file
from outfitter.config import InvalidConfig
from taskvectors.format import file_digest


def import_lora(
    adapter: FolderArgument,
    out_file: OutOption,
    base: Annotated[Path | None, typer.Option(help="The base's folder, to check against.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bf16, fp16, fp32; else as stored.")] = None,
) -> None:
    """Write a task vector file from a PEFT LoRA folder, without loss."""
    from taskvectors.exchange import import_lora as run

    if dtype is not None and dtype not in VALUE_DTYPES:
        choices = ", ".join(VALUE_DTYPES)
        raise InvalidConfig(f"unsupported --dtype {dtype!r}; choose {choices}")
    run(adapter, out_file, base_dir=base, value_dtype=dtype)
    print_file(out_file, file_digest(out_file), out_file.stat().st_size)
