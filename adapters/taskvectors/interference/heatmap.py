"""A picture of a report: pairs by layers, one panel for conflict and one for cosine. matplotlib."""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from taskvectors.delta import Array
from taskvectors.durable import replacing
from taskvectors.interference.report import Figures, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELL = 0.24
"""Inches of one layer's column, and of one pair's row."""
MAX_STACKED = 21
"""More pairs than this stand side by side, not one panel above the other."""
MAX_LABEL = 18
NOTHING_SHARED = "#bdbdbd"
LEGEND = "layer (all: every parameter) · blue agrees, red fights, grey has nothing in common"


@dataclass(frozen=True)
class _Panel:
    title: str
    figure: Callable[[Figures], float]
    colours: str
    middle: float


PANELS = (
    _Panel(
        "Sign conflict, weighted by magnitude (0.5: unrelated signs)",
        lambda figures: figures.conflict,
        "RdBu_r",
        0.5,
    ),
    _Panel("Cosine of the deltas (0: unrelated)", lambda figures: figures.cosine, "RdBu", 0.0),
)


def write_png(report: Report, path: str | os.PathLike[str]) -> None:
    """Draw `report` to `path`. Raises ModuleNotFoundError without matplotlib, OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_layers = len(report.layers) + 1
    stacked = len(report.pairs) <= MAX_STACKED
    rows, columns = (2, 1) if stacked else (1, 2)
    width = max(4.0, num_layers * CELL) * columns + 3.6
    height = (max(2, len(report.pairs)) * CELL + 0.9) * rows + 0.8
    figure = Figure(figsize=(width, height), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, panel in zip(axes.flat, PANELS, strict=True):
        _draw(axis, report, panel, labelled=stacked or axis is axes.flat[0])
    figure.supxlabel(LEGEND, fontsize=9)
    with warnings.catch_warnings(), replacing(Path(path)) as file:
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(file, format="png", metadata={"Software": None})


def values(report: Report, figure: Callable[[Figures], float]) -> Array:
    """float64 [pairs, 1 + layers]: overall, then by layer; NaN where nothing is shared."""
    return np.array(
        [
            [
                figure(part) if part.common else np.nan
                for part in (pair.overall, *(pair.layers[layer] for layer in report.layers))
            ]
            for pair in report.pairs
        ]
    )


def spread(shown: Array, middle: float) -> float:
    """How far the scale reaches to both sides of `middle`: never so little that noise glares."""
    known = np.abs(shown[~np.isnan(shown)] - middle)
    return max(0.1, float(known.max(initial=0.0)))


def _draw(axis: "Axes", report: Report, panel: _Panel, *, labelled: bool) -> None:
    shown = values(report, panel.figure)
    reach = spread(shown, panel.middle)
    limits: dict[str, Any] = {"vmin": panel.middle - reach, "vmax": panel.middle + reach}
    axis.set_facecolor(NOTHING_SHARED)
    image = axis.pcolormesh(
        shown, cmap=panel.colours, edgecolors="white", linewidth=0.6, rasterized=True, **limits
    )
    axis.axvline(1, color="black", linewidth=1.2)
    axis.invert_yaxis()
    axis.set_title(panel.title, fontsize=10, loc="left")
    columns = ["all", *report.layers]
    axis.set_xticks(np.arange(len(columns)) + 0.5, columns, fontsize=7, rotation=90)
    pairs = [f"{_cut(pair.left)} × {_cut(pair.right)}" for pair in report.pairs]
    shown_pairs = pairs if labelled else [""] * len(pairs)
    axis.set_yticks(np.arange(len(pairs)) + 0.5, shown_pairs, fontsize=8, parse_math=False)
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)
    bar = axis.figure.colorbar(image, ax=axis, pad=0.01, fraction=0.04, aspect=15)
    bar.ax.tick_params(labelsize=7)


def _cut(name: str) -> str:
    """Printable, and short enough for a margin; both ends of a long name are kept."""
    text = "".join(c if c.isprintable() else "?" for c in name)
    half = MAX_LABEL // 2
    return text if len(text) <= MAX_LABEL else f"{text[: half - 1]}…{text[-half:]}"
