"""One look for every picture: colours that colour-blind eyes tell apart, thin axes, intervals."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.ticker import PercentFormatter
from PIL import Image

matplotlib.use("Agg")

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
"""Okabe and Ito's palette."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#8a8a8a"
MAX_BYTES = 150_000
NUM_COLORS = 256

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.edgecolor": "#666666",
    "legend.frameon": False,
    "figure.dpi": 110,
    "savefig.dpi": 110,
}


def canvas(rows: int, columns: int, size: tuple[float, float], **more: Any) -> tuple[Any, Any]:
    """A figure and its axes, in the common look."""
    plt.rcParams.update(STYLE)
    return plt.subplots(rows, columns, figsize=size, layout="constrained", **more)


def errors(rates: Sequence[dict[str, Any]]) -> list[list[float]]:
    """Distances below and above, as matplotlib wants them."""
    below = [max(0.0, r["rate"] - r["interval"][0]) for r in rates]
    above = [max(0.0, r["interval"][1] - r["rate"]) for r in rates]
    return [below, above]


def percent(axis: Any) -> None:
    """Rates from 0 to 1 as per cent."""
    axis.set_ylim(-0.04, 1.04)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))


def save(figure: Any, path: Path) -> None:
    """In few colours and without a date; raises ValueError for a picture too heavy for a README."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(NUM_COLORS, dither=Image.Dither.NONE).save(
        path, optimize=True
    )
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; at most {MAX_BYTES} are wanted")
