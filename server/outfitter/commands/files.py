"""`outfitter extract` and `inspect`: task vector files, without a server."""

import dataclasses
import json
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from outfitter.commands.console import count_progress, human_bytes, out
from outfitter.config import InvalidConfig
from taskvectors.format import FileHeader, ParameterSpec, file_digest, read_header
from taskvectors.format.header import tensor_names

VALUE_DTYPES = ("bf16", "fp16", "fp32")
INDEX_DTYPES = ("auto", "u8", "u16", "u32")

FolderArgument = Annotated[Path, typer.Argument(exists=True, file_okay=False)]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="The task vector file to write.")]


def extract(
    base: FolderArgument,
    finetuned: FolderArgument,
    out_file: OutOption,
    density: Annotated[float, typer.Option(help="Share of each matrix to keep.")] = 0.01,
    dtype: Annotated[str, typer.Option(help="Of the values: bf16, fp16, fp32.")] = "bf16",
    index: Annotated[str, typer.Option(help="Of the indices: auto, u8, u16, u32.")] = "auto",
    license: Annotated[str | None, typer.Option(help="SPDX name, for the file.")] = None,
) -> None:
    """Write a task vector file: a fine-tuned checkpoint minus its base."""
    from taskvectors.extract import extract as run

    _choose("--dtype", dtype, VALUE_DTYPES)
    _choose("--index", index, INDEX_DTYPES)
    if not 0 < density <= 1:
        raise InvalidConfig(f"unsupported --density {density}; use above 0 and at most 1")
    with count_progress() as bar:
        task = bar.add_task("comparing", total=None)
        report = run(
            base,
            finetuned,
            out_file,
            density=density,
            value_dtype=dtype,
            index=index,
            license=license,
            progress=lambda done, total, _: bar.update(task, completed=done, total=total),
        )
    out.print(_extract_table(report))
    print_file(out_file, report.digest, report.nbytes)


def inspect(
    file: Annotated[Path, typer.Argument(help="A task vector file.", exists=True, dir_okay=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a task vector file holds."""
    header = read_header(file)
    digest = file_digest(file)
    if as_json:
        typer.echo(json.dumps(_as_json(header, digest), indent=2, default=str))
        return
    facts = Table(box=None, show_header=False)
    facts.add_row("digest", f"sha256:{digest}")
    facts.add_row("base", header.base.name)
    facts.add_row("fingerprint", header.base.fingerprint or "not given")
    facts.add_row("size", human_bytes(header.nbytes))
    for key, value in header.metadata.items():
        facts.add_row(key, value if isinstance(value, str) else json.dumps(value, default=str))
    out.print(facts)
    out.print(_module_table(header))


def print_file(path: Path, digest: str, nbytes: int) -> None:
    """One line that says what was written."""
    out.print(f"{path} {human_bytes(nbytes)} sha256:{digest}", highlight=False, soft_wrap=True)


def _choose(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidConfig(f"unsupported {option} {value!r}; choose {', '.join(choices)}")


def module_kind(parameter: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` and its kin in other layers, as one."""
    return ".".join("*" if part.isdigit() else part for part in parameter.split("."))


def _module_table(header: FileHeader) -> Table:
    groups: dict[tuple[str, ...], list[tuple[str, ParameterSpec]]] = defaultdict(list)
    for name, spec in header.parameters.items():
        shape = "×".join(str(size) for size in spec.shape)
        kind = f"low_rank r{spec.rank}" if spec.kind == "low_rank" else spec.kind
        groups[module_kind(name), kind, shape, spec.dtype].append((name, spec))
    table = Table(
        "parameter", "kind", "shape", "dtype", "count", "nnz", "density", "bytes", box=None
    )
    for (module, kind, shape, dtype), members in groups.items():
        nnz = sum(spec.nnz for _, spec in members)
        density = nnz / max(1, sum(spec.numel for _, spec in members))
        nbytes = human_bytes(sum(_nbytes(header, name) for name, _ in members))
        row = (module, kind, shape, dtype, str(len(members)), f"{nnz:,}", f"{density:.2%}", nbytes)
        table.add_row(*row)
    return table


def _nbytes(header: FileHeader, parameter: str) -> int:
    names = tensor_names(parameter, header.parameters[parameter].kind)
    return sum(header.tensors[name].nbytes for name in names)


def _as_json(header: FileHeader, digest: str) -> dict[str, Any]:
    return {
        "digest": f"sha256:{digest}",
        "bytes": header.nbytes,
        "base": dataclasses.asdict(header.base),
        "metadata": dict(header.metadata),
        "parameters": {
            name: {**dataclasses.asdict(spec), "bytes": _nbytes(header, name)}
            for name, spec in header.parameters.items()
        },
    }


def _extract_table(report: Any) -> Table:
    """Kept energy per kind of module: Σ of what is stored over Σ of the whole difference."""
    groups: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for parameter in report.parameters:
        groups[module_kind(parameter.name), parameter.kind].append(parameter)
    table = Table("parameter", "kind", "count", "kept entries", "density", "kept energy", box=None)
    for (module, kind), members in groups.items():
        nnz, numel = sum(p.nnz for p in members), sum(p.numel for p in members)
        energy = sum(p.energy for p in members)
        kept = sum(p.kept_energy for p in members) / energy if energy else 1.0
        row = (module, kind, str(len(members)), f"{nnz:,}", f"{nnz / numel:.2%}", f"{kept:.1%}")
        table.add_row(*row)
    total = (f"{report.nnz:,}", f"{report.density:.2%}", f"{report.kept:.1%}")
    table.add_row("all changed", "", str(len(report.parameters)), *total)
    if report.unchanged:
        table.add_row("unchanged", "", str(len(report.unchanged)), "0", "", "")
    return table
