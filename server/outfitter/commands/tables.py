"""What is in a task vector file, as tables and as JSON."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from outfitter.commands.console import human_bytes
from taskvectors.extract import ExtractReport, Size, kind_of, size_of
from taskvectors.format import FileHeader, ParameterSpec

Energies = Mapping[str, tuple[float, float]]
"""Of each parameter Σ d² of its difference, and of what was kept of it."""


def parameter_table(
    header: FileHeader, *, per_layer: bool, energies: Energies | None = None
) -> Table:
    """A row for each kind of parameter (or each parameter), and one for all."""
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, spec in header.parameters.items():
        shape = "×".join(str(size) for size in spec.shape)
        groups[name if per_layer else kind_of(name), _encoding(spec), shape].append(name)
    table = Table(box=None)
    table.add_column("parameter", overflow="fold")
    for column in ("stored as", "shape"):
        table.add_column(column, no_wrap=True)
    for column in _numbers(energies):
        table.add_column(column, justify="right", no_wrap=True)
    for key, names in groups.items():
        table.add_row(*key, *_cells(header, names, energies))
    table.add_row("all", "", "", *_cells(header, list(header.parameters), energies))
    return table


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


def _encoding(spec: ParameterSpec) -> str:
    kind = f"low-rank r{spec.rank}" if spec.kind == "low_rank" else spec.kind
    return " ".join(word for word in (kind, spec.index, spec.values) if word)


def _numbers(energies: Energies | None) -> list[str]:
    kept = [] if energies is None else ["kept energy"]
    return ["count", "values", "density", *kept, "bytes", "bytes/value", "exceptions"]


def _cells(header: FileHeader, names: list[str], energies: Energies | None) -> list[str]:
    size = sum((size_of(header, name) for name in names), Size())
    cells = [str(len(names)), f"{size.stored:,}", f"{size.density:.2%}"]
    if energies is not None:
        energy, kept = (sum(energies[name][side] for name in names) for side in (0, 1))
        cells.append(f"{min(1.0, kept / energy) if energy else 1.0:.1%}")
    return [*cells, human_bytes(size.nbytes), f"{size.per_nonzero:.2f}", f"{size.exceptions:,}"]


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
