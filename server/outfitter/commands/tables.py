"""What is in a task vector file, as tables and as JSON."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from outfitter.commands.console import human_bytes, printable
from taskvectors.extract import ExtractReport, Size, size_of
from taskvectors.format import FileHeader, ParameterSpec
from taskvectors.vector import kind_of

Energies = Mapping[str, tuple[float, float]]
"""Of each parameter Σ d² of its difference, and of what was kept of it."""


def parameter_table(
    header: FileHeader, *, per_layer: bool, energies: Energies | None = None
) -> Table:
    """A row for each kind of parameter (or each parameter), and one for all; 80 columns wide."""
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, spec in header.parameters.items():
        groups[name if per_layer else kind_of(name), spec.kind, spec.index, spec.values].append(
            name
        )
    has_exceptions = any(spec.num_exceptions for spec in header.parameters.values())
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("parameter", overflow="fold")
    table.add_column("stored as", no_wrap=True)
    for column in _numbers(energies, has_exceptions):
        table.add_column(column, justify="right", no_wrap=True)
    for (name, *_), names in groups.items():
        encoding = _encoding([header.parameters[member] for member in names])
        cells = _cells(header, names, energies, has_exceptions)
        table.add_row(escape(printable(_short(name))), encoding, *cells)
    table.add_row("all", "", *_cells(header, list(header.parameters), energies, has_exceptions))
    return table


def _short(name: str) -> str:
    """`mlp.up_proj` for `model.layers.*.mlp.up_proj.weight`: what all names share says nothing."""
    return name.removeprefix("model.").removeprefix("layers.*.").removesuffix(".weight")


def bound_line(size: Size) -> str:
    """The entropy bound beside the bytes of the tensors."""
    share = size.bound / size.nbytes if size.nbytes else 1.0
    return (
        f"{human_bytes(size.nbytes)} of tensors; entropy bound {human_bytes(size.bound)}"
        f" ({share:.1%}): no coding of random supports of these densities is smaller"
    )


def file_as_json(header: FileHeader, digest: str) -> dict[str, Any]:
    """Everything that a header says, and what it adds up to."""
    sizes = {name: size_of(header, name) for name in header.parameters}
    return {
        "digest": f"sha256:{digest}",
        "bytes": header.nbytes,
        "base": dataclasses.asdict(header.base),
        "metadata": dict(header.metadata),
        "parameters": {
            name: {**_spec_as_json(spec), **_size_as_json(sizes[name])}
            for name, spec in header.parameters.items()
        },
        "total": _size_as_json(sum(sizes.values(), Size())),
    }


def report_as_json(report: ExtractReport, header: FileHeader) -> dict[str, Any]:
    """What an extraction wrote, with the energy that it kept."""
    fields = file_as_json(header, report.digest)
    for parameter in report.parameters:
        fields["parameters"][parameter.name] |= {
            "energy": parameter.energy,
            "kept_energy": parameter.kept_energy,
            "kept": parameter.kept,
        }
    fields["total"]["kept"] = report.kept
    return {"path": str(report.path), **fields, "unchanged": list(report.unchanged)}


def energies_of(report: ExtractReport) -> dict[str, tuple[float, float]]:
    """Of each parameter of an extraction."""
    return {p.name: (p.energy, p.kept_energy) for p in report.parameters}


def _encoding(specs: Sequence[ParameterSpec]) -> str:
    """`sparse u8 bf16`, `low-rank r2-11 bf16`: how parameters of one encoding are stored."""
    ranks = sorted({spec.rank for spec in specs})
    span = f"r{ranks[0]}-{ranks[-1]}" if len(ranks) > 1 else f"r{ranks[0]}"
    kind = f"low-rank {span}" if specs[0].kind == "low_rank" else specs[0].kind
    return " ".join(word for word in (kind, specs[0].index, specs[0].values) if word)


def _numbers(energies: Energies | None, has_exceptions: bool) -> list[str]:
    kept = [] if energies is None else ["energy"]
    exceptions = ["exceptions"] if has_exceptions else []
    return ["count", "values", "density", *kept, "bytes", "B/value", *exceptions]


def _cells(
    header: FileHeader, names: list[str], energies: Energies | None, has_exceptions: bool
) -> list[str]:
    size = sum((size_of(header, name) for name in names), Size())
    cells = [str(len(names)), f"{size.stored:,}", f"{size.density:.2%}"]
    if energies is not None:
        energy, kept = (sum(energies[name][side] for name in names) for side in (0, 1))
        cells.append(f"{min(1.0, kept / energy) if energy else 1.0:.1%}")
    exceptions = [f"{size.exceptions:,}"] if has_exceptions else []
    return [*cells, human_bytes(size.nbytes), f"{size.per_nonzero:.2f}", *exceptions]


def _spec_as_json(spec: ParameterSpec) -> dict[str, Any]:
    return {
        "kind": spec.kind,
        "shape": list(spec.shape),
        "dtype": spec.dtype,
        "values": spec.values,
        "index": spec.index,
        "nnz": spec.nnz,
        "rank": spec.rank,
        "scale": spec.scale,
    }


def _size_as_json(size: Size) -> dict[str, Any]:
    return {
        "elements": size.numel,
        "stored_values": size.stored,
        "density": size.density,
        "exceptions": size.exceptions,
        "bytes": size.nbytes,
        "bytes_per_value": size.per_nonzero,
        "entropy_bound_bytes": round(size.bound),
    }
