"""The search as a picture: what was found for how many evaluations, and what it is worth."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from outfitter.tuning.report import Report
from outfitter.tuning.tuner import RANDOM, SEARCH

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {SEARCH: "tab:blue", RANDOM: "tab:gray"}
DPI = 120


def write_plot(report: Report, path: Path) -> None:
    """Write a picture in the format that the name's ending says; raises OSError, ValueError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _curves(left, report)
    _bars(right, report)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(partial, dpi=DPI, format=path.suffix.removeprefix(".") or "png")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _curves(axes: "Axes", report: Report) -> None:
    for name, steps in report.found.steps.items():
        ordered = sorted(steps, key=lambda step: step.at)
        x = [step.at / report.num_search for step in ordered]
        y = [step.score for step in ordered]
        best = [max(y[: i + 1]) for i in range(len(y))]
        label = "tuned" if name == SEARCH else "random search"
        axes.scatter(x, y, s=9, alpha=0.4, color=COLORS[name])
        axes.step(x, best, where="post", color=COLORS[name], label=f"{label}, best so far")
    axes.axhline(report.equal.search, color="tab:red", linestyle="--", label="equal weights")
    axes.set_xlabel(f"evaluations ({report.num_search} answers each)")
    axes.set_ylabel("expected score on the search's prompts")
    axes.legend(loc="lower right", fontsize=8)
    axes.grid(alpha=0.3)


def _bars(axes: "Axes", report: Report) -> None:
    rows = [*reversed(report.rows)]
    means = [row.held_out.mean for row in rows]
    low = [max(0.0, row.held_out.mean - row.held_out.low) for row in rows]
    high = [max(0.0, row.held_out.high - row.held_out.mean) for row in rows]
    colors = ["tab:blue" if row is report.tuned else "lightgray" for row in rows]
    axes.barh(range(len(rows)), means, xerr=[low, high], color=colors, capsize=3)
    axes.set_yticks(range(len(rows)), [f"{row.what}\n{row.loadout}" for row in rows], fontsize=7)
    axes.set_xlabel(f"score on {report.num_held_out} held-out prompts, 95 %")
    axes.grid(axis="x", alpha=0.3)
