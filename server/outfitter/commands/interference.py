"""`outfitter interference`: how far task vectors disturb each other, before they are mixed."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from outfitter.commands.console import count_progress, out, printable
from outfitter.commands.loadouts import opened
from outfitter.commands.vectors import JsonOption
from outfitter.config import InvalidConfig
from outfitter.vectors import Vectors
from taskvectors.errors import VectorNotFound
from taskvectors.interference import ADVICE, Figures, PairReport, Report, compare
from taskvectors.spec import MAX_VECTORS, Reference

_HEADS = ("cosine", "conflict", "entries", "Jaccard", "energy", "outputs", "inputs")
_LEGEND = (
    "conflict: share of opposed signs, weighted by magnitude; entries: unweighted; energy: share of"
    " each vector's Σd² in the common support; outputs, inputs: overlap of the top 8 singular"
    " directions (in brackets: of random ones)"
)


def interference(
    vectors: Annotated[
        list[str], typer.Argument(help="Task vector files, or references in --store.")
    ],
    store: Annotated[
        Path | None,
        typer.Option(help="A store's folder; what is no file is looked up in it.", file_okay=False),
    ] = None,
    as_json: JsonOption = False,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Also per layer; in JSON per kind of module, too.")
    ] = False,
    png: Annotated[Path | None, typer.Option(help="Write a heat map, pairs by layers.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with every figure.")] = None,
) -> None:
    """Compare task vectors pair by pair: cosine, sign conflict, overlap, shared directions."""
    if not 2 <= len(vectors) <= MAX_VECTORS:
        raise InvalidConfig(f"give 2 to {MAX_VECTORS} task vectors to compare, not {len(vectors)}")
    check_outputs(png, html)
    report = _compare(_sources(vectors, store))
    _write(report, png, html)
    if as_json:
        typer.echo(json.dumps(report.to_json(per_layer=per_layer), indent=2))
        return
    out.print(_vector_table(report))
    out.print(_pair_table(report))
    if per_layer:
        for pair in report.pairs:
            out.print(_layer_table(pair))
    for line in (_LEGEND, *ADVICE):
        out.print(line, style="dim", highlight=False, markup=False)


def _compare(files: dict[str, Path]) -> Report:
    with count_progress() as bar:
        task = bar.add_task("comparing", total=None)
        return compare(
            files, progress=lambda done, total, _: bar.update(task, completed=done, total=total)
        )


def _sources(arguments: list[str], store: Path | None) -> dict[str, Path]:
    """Files under short names that differ; raises VectorNotFound, InvalidReference."""
    with opened(store) as vectors:
        paths = [_path(argument, vectors) for argument in arguments]
    names = [
        Path(argument).stem if Path(argument).is_file() else argument for argument in arguments
    ]
    if len(set(names)) < len(names):
        names = arguments
    if len(set(names)) < len(names):
        raise InvalidConfig("each task vector can be named only once")
    return {printable(name): path for name, path in zip(names, paths, strict=True)}


def _path(argument: str, store: Vectors | None) -> Path:
    """An existing file, else what a reference stands for in the store."""
    path = Path(argument)
    if path.is_file():
        return path
    if store is None:
        raise VectorNotFound(
            f"no task vector file {argument!r}; to name one in a store, add --store"
        )
    return store.path(Reference.parse(argument))


def check_outputs(*paths: Path | None) -> None:
    """Before minutes of work: every folder is there."""
    for path in paths:
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise InvalidConfig(f"cannot write {str(path)!r}; name a file in a folder that exists")


def _write(report: Report, png: Path | None, html: Path | None) -> None:
    if html is not None:
        from taskvectors.interference.page import write_html

        write_html(report, html)
    if png is not None:
        with _explained():
            from taskvectors.interference.heatmap import write_png

            write_png(report, png)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise InvalidConfig(f"--png needs {error.name}; run: pip install matplotlib") from error


def _vector_table(report: Report) -> Table:
    table = _table("task vector", ("norm", "nonzeros", "density"))
    for vector in report.vectors:
        row = (f"{vector.norm:.4g}", f"{vector.nnz:,}", f"{vector.density:.2%}")
        table.add_row(escape(vector.name), *row)
    return table


def _pair_table(report: Report) -> Table:
    table = _table("pair", _HEADS)
    for pair in report.pairs:
        table.add_row(escape(f"{pair.left} × {pair.right}"), *_cells(pair.overall))
    return table


def _layer_table(pair: PairReport) -> Table:
    table = _table("layer", _HEADS)
    table.title = escape(f"{pair.left} × {pair.right}")
    for layer, figures in pair.layers.items():
        table.add_row(escape(printable(layer)), *_cells(figures))
    return table


def _table(first: str, heads: Iterable[str]) -> Table:
    table = Table(first, box=None, title_justify="left")
    for head in heads:
        table.add_column(head, justify="right")
    return table


def _cells(figures: Figures) -> list[str]:
    """A dash where two vectors have nothing in common that could conflict."""
    conflict = (figures.conflict, figures.conflict_share)
    first, second = figures.overlap_energy
    cells = [f"{figures.cosine:+z.3f}"]
    cells += [f"{share:.3f}" if figures.common else "-" for share in conflict]
    cells += [f"{figures.jaccard:.3f}", f"{first:.0%} / {second:.0%}"]
    if (found := figures.subspace) is None:
        return [*cells, "-", "-"]
    cells.append(f"{found.left:.3f} ({found.left_chance:.3f})")
    return [*cells, f"{found.right:.3f} ({found.right_chance:.3f})"]
