"""Pictures of the matrix: what every linear loadout can do, and what other methods change."""

from typing import Any

import numpy as np
from matplotlib.ticker import PercentFormatter
from skills import SKILLS

from science.canvas import COLORS, MARKERS, canvas, errors

Facts = dict[str, Any]
COLUMNS = (*SKILLS, "control")


def draw_matrix(result: Facts) -> Any:
    """Loadouts by skills, linear with weight 1; each cell with its interval."""
    rows = [r for r in result["rows"] if r.get("method", "linear") == "linear"]
    cells = [[_cell(row, column) for column in COLUMNS] for row in rows]
    figure, axis = canvas(1, 1, (8, 8.2))
    rates = np.array([[cell["rate"] for cell in line] for line in cells])
    axis.imshow(rates, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for y, line in enumerate(cells):
        for x, cell in enumerate(line):
            _write(axis, x, y, cell, wanted=COLUMNS[x] in rows[y].get("skills", ("control",)))
    axis.set_xticks(range(len(COLUMNS)), COLUMNS)
    axis.set_yticks(range(len(rows)), [_label(row) for row in rows])
    axis.xaxis.tick_top()
    axis.grid(False)
    axis.tick_params(length=0)
    asked = cells[0][0]["asked"]
    note = f"share of {asked} held-out prompts; small: 95 % interval; bold: a skill of the loadout"
    figure.supxlabel(note, fontsize=9)
    return figure


def draw_methods(result: Facts) -> Any:
    """Left, what pairs keep by three methods; right, what all five keep by every method."""
    figure, (left, right) = canvas(1, 2, (10, 5.2))
    pairs = [r for r in result["rows"] if len(r.get("skills", ())) == 2]
    _draw_pairs(left, pairs)
    _draw_all(right, [r for r in result["rows"] if len(r.get("skills", ())) == len(SKILLS)])
    return figure


def _draw_pairs(axis: Any, rows: list[Facts]) -> None:
    names = list(dict.fromkeys(" + ".join(r["skills"]) for r in rows))
    methods = sorted(dict.fromkeys(label(r) for r in rows), key=lambda name: name != "linear")
    for number, method in enumerate(methods):
        mine = [r for r in rows if label(r) == method]
        places = [-names.index(" + ".join(r["skills"])) + (1 - number) * 0.22 for r in mine]
        _points(axis, places, [pooled(r) for r in mine], number, method)
    axis.set_yticks([-place for place in range(len(names))], names, fontsize=8.5)
    _dress(axis, "Pairs: mean of the two skills")


def _draw_all(axis: Any, rows: list[Facts]) -> None:
    places = [-place for place in range(len(rows))]
    _points(axis, [p + 0.14 for p in places], [pooled(r) for r in rows], 0, "mean of the skills")
    control = [r["rates"]["control"] for r in rows]
    _points(axis, [p - 0.14 for p in places], control, len(COLORS) - 1, "control")
    axis.set_yticks(places, [label(r) for r in rows], fontsize=8.5)
    _dress(axis, "All five at once")


def _points(axis: Any, y: list[float], rates: list[Facts], number: int, name: str) -> None:
    axis.errorbar(
        [r["rate"] for r in rates],
        y,
        xerr=errors(rates),
        fmt=MARKERS[number],
        color=COLORS[number],
        label=name,
        capsize=2,
        markersize=5,
    )


def _dress(axis: Any, title: str) -> None:
    axis.set_title(title)
    axis.set_xlim(-0.04, 1.04)
    axis.xaxis.set_major_formatter(PercentFormatter(1.0))
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=3, fontsize=9)


def pooled(row: Facts) -> Facts:
    """The loadout's own skills together, their intervals averaged in quadrature of half-widths."""
    cells = [row["kept"][skill] for skill in row["skills"]]
    mean = float(np.mean([c["rate"] for c in cells]))
    below, above = (np.hypot.reduce(e) / len(cells) for e in errors(cells))
    return {"rate": mean, "interval": [mean - below, mean + above]}


def label(row: Facts) -> str:
    """`dare_linear .5`: the method and its density."""
    density = row["parameters"].get("density")
    return row["method"] if density is None else f"{row['method']} {density:g}"


def _cell(row: Facts, column: str) -> Facts:
    cell: Facts = row["rates"][column] if column == "control" else row["kept"][column]
    return cell


def _label(row: Facts) -> str:
    skills = row.get("skills", [])
    return "all five" if len(skills) == len(SKILLS) else " + ".join(skills) or "base"


def _write(axis: Any, x: int, y: int, cell: Facts, wanted: bool) -> None:
    color = "white" if cell["rate"] < 0.55 else "black"
    low, high = cell["interval"]
    weight = "bold" if wanted else "normal"
    axis.text(
        *(x, y - 0.12), f"{cell['rate']:.0%}", color=color, weight=weight, ha="center", va="center"
    )
    axis.text(
        *(x, y + 0.26),
        f"{low:.0%} – {high:.0%}".replace("%", ""),
        color=color,
        ha="center",
        va="center",
        fontsize=6.5,
    )
