"""A report as one HTML page that needs nothing else: tables of numbers, coloured as they read.

Names are hostile: every text is escaped, and the page forbids itself to load or run anything.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path

from taskvectors.durable import replacing
from taskvectors.interference.heatmap import spread, values
from taskvectors.interference.report import ADVICE, Figures, PairReport, Report

Colour = tuple[int, int, int]

AGREES: Colour = (33, 102, 172)
FIGHTS: Colour = (178, 24, 43)
WHITE: Colour = (255, 255, 255)
BLACK: Colour = (0, 0, 0)

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color: #1a1a1a; background: #fff; }
h1 { font-size: 1.4rem; margin: 0 0 .5rem; }
p { max-width: 75ch; margin: .5rem 0; }
.scroll { overflow-x: auto; margin: 1.5rem 0; }
table { border-collapse: separate; border-spacing: 1px; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; }
td { font-variant-numeric: tabular-nums; background: #f6f6f6; }
thead th { vertical-align: bottom; border-bottom: 1px solid #999; font-weight: 600;
  white-space: normal; overflow-wrap: anywhere; min-width: 4.5rem; max-width: 8rem; }
tbody th, th.name { text-align: left; font-weight: 500; }
tbody th { position: sticky; left: 0; background: #fff; }
.overall th, .overall td { border-bottom: 2px solid #1a1a1a; }
.none { color: #595959; }
"""
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Interference of task vectors</title>
"""
_VECTOR_HEADS = ("task vector", "norm", "nonzeros", "density", "parameters")
_PAIR_HEADS = (
    "pair",
    "cosine",
    "conflict, weighted",
    "conflict, entries",
    "Jaccard",
    "overlap energy of the first",
    "overlap energy of the second",
    "output directions (chance)",
    "input directions (chance)",
)


def write_html(report: Report, path: str | os.PathLike[str]) -> None:
    """Write `page(report)` to `path`, in UTF-8. Raises OSError."""
    with replacing(Path(path)) as file:
        file.write(page(report).encode("utf-8", "replace"))


def page(report: Report) -> str:
    """The whole page: vectors, pairs, and each pair's conflict and cosine per layer."""
    parts = [
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>Interference of task vectors</h1>",
        f"<p>Base: {escape(str(report.base))}.</p>",
        *(f"<p>{escape(line)}</p>" for line in ADVICE),
        _table("Task vectors", _VECTOR_HEADS, _vector_rows(report)),
        _table("Pairs, over every parameter", _PAIR_HEADS, _pair_rows(report)),
        _heat_table(
            report,
            "Sign conflict, weighted by magnitude (0.5: unrelated signs)",
            lambda figures: figures.conflict,
            0.5,
            (AGREES, FIGHTS),
        ),
        _heat_table(
            report,
            "Cosine of the deltas (0: unrelated)",
            lambda figures: figures.cosine,
            0.0,
            (FIGHTS, AGREES),
        ),
        "</body>\n</html>\n",
    ]
    return _HEAD + "\n".join(parts)


def _vector_rows(report: Report) -> Iterable[str]:
    for vector in report.vectors:
        cells = (
            f"{vector.norm:.4g}",
            f"{vector.nnz:,}",
            f"{vector.density:.2%}",
            f"{vector.num_parameters:,}",
        )
        yield _row(vector.name, map(_cell, cells))


def _pair_rows(report: Report) -> Iterable[str]:
    for pair in report.pairs:
        yield _row(_title(pair), map(_cell, _pair_cells(pair.overall)))


def _pair_cells(figures: Figures) -> list[str]:
    first, second = figures.overlap_energy
    cells = [f"{figures.cosine:+z.3f}"]
    if figures.common:
        cells += [f"{figures.conflict:.3f}", f"{figures.conflict_share:.3f}"]
    else:
        cells += ["–", "–"]
    cells += [f"{figures.jaccard:.4f}", f"{first:.1%}", f"{second:.1%}"]
    if (found := figures.subspace) is None:
        return [*cells, "–", "–"]
    cells.append(f"{found.left:.3f} ({found.left_chance:.3f})")
    return [*cells, f"{found.right:.3f} ({found.right_chance:.3f})"]


def _heat_table(
    report: Report,
    caption: str,
    figure: Callable[[Figures], float],
    middle: float,
    ends: tuple[Colour, Colour],
) -> str:
    """Layers by pairs; ends: the colours of the least and of the most."""
    shown = values(report, figure)
    reach = spread(shown, middle)
    rows = []
    for name, column in zip(("all", *report.layers), shown.T.tolist(), strict=True):
        cells = [_heat_cell(value, (value - middle) / reach, ends) for value in column]
        label = name if name in ("all", "other") else f"layer {name}"
        rows.append(_row(label, cells, "overall" if name == "all" else ""))
    return _table(caption, ["layer", *map(_title, report.pairs)], rows)


def _heat_cell(value: float, position: float, ends: tuple[Colour, Colour]) -> str:
    if value != value:
        return '<td class="none">–</td>'
    back, front = cell_colours(position, ends)
    return f'<td style="background:{_hex(back)};color:{_hex(front)}">{value:z.3f}</td>'


def cell_colours(position: float, ends: tuple[Colour, Colour]) -> tuple[Colour, Colour]:
    """Background and text for a position from −1 to 1; white lies in the middle.

    The text is black or white, whichever contrasts more: at least 4.5 to 1 (WCAG 2.2, 1.4.3).
    """
    end = ends[position > 0]
    part = min(1.0, abs(position))
    red, green, blue = (round(255 + part * (channel - 255)) for channel in end)
    back = (red, green, blue)
    front = max((BLACK, WHITE), key=lambda text: contrast(back, text))
    return back, front


def contrast(one: Colour, other: Colour) -> float:
    """The contrast ratio of WCAG 2.2, from 1 to 21."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: Colour) -> float:
    parts = [channel / 255 for channel in colour]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return float(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])


def _table(caption: str, heads: Sequence[str], rows: Iterable[str]) -> str:
    first, *rest = (escape(head) for head in heads)
    columns = "".join(f'<th scope="col">{head}</th>' for head in rest)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">\n'
        f"<table>\n<caption>{escape(caption)}</caption>\n"
        f'<thead><tr><th scope="col" class="name">{first}</th>{columns}</tr></thead>\n'
        f"<tbody>\n{chr(10).join(rows)}\n</tbody>\n</table>\n</div>"
    )


def _row(name: str, cells: Iterable[str], kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<tr{attribute}><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>'


def _cell(text: str) -> str:
    return f"<td>{escape(text)}</td>"


def _title(pair: PairReport) -> str:
    return f"{pair.left} × {pair.right}"


def _hex(colour: Colour) -> str:
    return "#" + bytes(colour).hex()
