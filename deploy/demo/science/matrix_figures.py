"""Pictures of the matrix: what every linear loadout can do, and what other methods change."""

from typing import Any

import numpy as np
from skills import SKILLS

from science.canvas import COLORS, GREY, MARKERS, canvas, errors, percent

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
    figure, (left, right) = canvas(1, 2, (10, 4.8), width_ratios=(1.25, 1))
    pairs = [r for r in result["rows"] if len(r.get("skills", ())) == 2]
    _draw_pairs(left, pairs)
    _draw_all(right, [r for r in result["rows"] if len(r.get("skills", ())) == len(SKILLS)])
    return figure


def _draw_pairs(axis: Any, rows: list[Facts]) -> None:
    names = list(dict.fromkeys("\n".join(r["skills"]) for r in rows))
    methods = list(dict.fromkeys(label(r) for r in rows))
    for number, method in enumerate(methods):
        mine = {"\n".join(r["skills"]): pooled(r) for r in rows if label(r) == method}
        places = [names.index(n) + (number - (len(methods) - 1) / 2) * 0.24 for n in mine]
        _points(axis, places, list(mine.values()), number, method)
    axis.set_xticks(range(len(names)), names, fontsize=7.5)
    percent(axis)
    axis.set_ylabel("mean of the pair's two skills")
    axis.set_title("Pairs")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3, fontsize=9)


def _draw_all(axis: Any, rows: list[Facts]) -> None:
    places = np.arange(len(rows))[::-1]
    for offset, color, marker, name, rates in (
        (0.14, COLORS[0], MARKERS[0], "mean of the five skills", [pooled(r) for r in rows]),
        (-0.14, GREY, MARKERS[1], "control", [r["rates"]["control"] for r in rows]),
    ):
        axis.errorbar(
            [r["rate"] for r in rates],
            places + offset,
            xerr=errors(rates),
            fmt=marker,
            color=color,
            label=name,
            capsize=2,
        )
    axis.set_yticks(places, [label(r) for r in rows], fontsize=8.5)
    axis.set_xlim(-0.04, 1.04)
    axis.set_xticks(np.linspace(0, 1, 6), [f"{t}%" for t in range(0, 101, 20)])
    axis.set_title("All five at once")
    axis.legend(loc="upper center", bbox_to_anchor=(0.4, -0.08), ncols=2, fontsize=9)


def _points(axis: Any, x: list[float], rates: list[Facts], number: int, name: str) -> None:
    axis.errorbar(
        x,
        [r["rate"] for r in rates],
        yerr=errors(rates),
        fmt=MARKERS[number],
        color=COLORS[number],
        label=name,
        capsize=2,
        markersize=5,
    )


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
