"""Pictures of the density curves: by the share of entries, and by the bytes of the real file."""

from typing import Any

from science.canvas import COLORS, MARKERS, canvas, errors, percent
from science.density import SKILLS

Facts = dict[str, Any]
CURVES = (
    ("magnitude", "bf16", "largest, bf16"),
    ("magnitude", "int8", "largest, int8"),
    ("magnitude", "ternary", "largest, ternary"),
    ("dare", "bf16", "random, rescaled (DARE), bf16"),
    ("magnitude rescaled", "bf16", "largest, rescaled, bf16"),
    ("dare", "ternary", "random (DARE), ternary"),
    ("svd", "bf16", "low rank 64 … 1, bf16"),
)
MEGABYTE = 1e6
TICKS = (0.0001, 0.001, 0.01, 0.1, 1.0)
SHIFT = 1.04
"""Sets points of equal density side by side."""


def draw_density(result: Facts) -> Any:
    """A column a skill; above by density, below by bytes."""
    figure, axes = canvas(2, len(SKILLS), (9.5, 7), sharey=True)
    for column, skill in enumerate(SKILLS):
        rows = [r for r in result["rows"] if r["skill"] == skill]
        for number, (cut, encoding, name) in enumerate(CURVES):
            mine = [r for r in rows if (r["cut"], r["encoding"]) == (cut, encoding)]
            mine.sort(key=lambda r: r["amount"])
            if cut != "svd":
                shifted = [r["amount"] * SHIFT ** (number - 1) for r in mine]
                _curve(axes[0, column], mine, shifted, number, name)
            _curve(axes[1, column], mine, [r["bytes"] / MEGABYTE for r in mine], number, name)
        _dress(axes[0, column], f"{skill}: by share of the entries", "entries kept, %")
        _dress(axes[1, column], f"{skill}: by size of the file", "file, MB")
        axes[0, column].set_xticks(TICKS, [f"{100 * t:g}" for t in TICKS])
        axes[1, column].set_xticks([0.5, 2, 10, 50, 200], ["0.5", "2", "10", "50", "200"])
    for axis in axes[:, 0]:
        axis.set_ylabel("answers that pass")
    handles, names = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    return figure


def _curve(axis: Any, rows: list[Facts], x: list[float], number: int, name: str) -> None:
    rates = [r["rates"][r["skill"]] for r in rows]
    axis.errorbar(
        x,
        [r["rate"] for r in rates],
        yerr=errors(rates),
        marker=MARKERS[number],
        color=COLORS[number],
        label=name,
        capsize=2,
        markersize=4.5,
        linewidth=0 if "int8" in name else 1.4,
        elinewidth=0.7,
    )


def _dress(axis: Any, title: str, x_label: str) -> None:
    axis.set_xscale("log")
    axis.minorticks_off()
    axis.set_title(title)
    axis.set_xlabel(x_label)
    percent(axis)
