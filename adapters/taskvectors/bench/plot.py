"""A picture of a run: speeds as a share of plain vLLM's, with quartiles and goals. matplotlib."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from taskvectors.bench.goals import Verdict
from taskvectors.bench.measures import Figure
from taskvectors.bench.run import Outcome
from taskvectors.bench.speeds import OF_PLAIN
from taskvectors.durable import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"plugin": "#2a6f97", "stock": "#bcb8b1"}
ROW = 0.3
"""Inches."""


def write_png(outcome: Outcome, path: Path) -> None:
    """Draw `outcome` to `path`. Raises ModuleNotFoundError without matplotlib, OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    groups = [group for group in _groups(outcome.figures) if group[1]]
    heights = [len(figures) + 1.5 for _, figures in groups]
    canvas = Canvas(figsize=(9, ROW * sum(heights) + 1.2), layout="constrained", dpi=110)
    FigureCanvasAgg(canvas)
    axes = canvas.subplots(len(groups), 1, squeeze=False, height_ratios=heights)
    verdicts = {verdict.goal.key: verdict for verdict in outcome.verdicts}
    for axis, (title, figures) in zip(axes.flat, groups, strict=True):
        _draw(axis, title, figures, verdicts)
    name = outcome.settings.model.resolve().name
    canvas.suptitle(f"{name}, {outcome.settings.value_dtype}, {outcome.device}", fontsize=11)
    with warnings.catch_warnings(), replacing(path) as file:
        warnings.filterwarnings("ignore", "Glyph .* missing")
        canvas.savefig(file, format="png", metadata={"Software": None})


def _groups(figures: tuple[Figure, ...]) -> list[tuple[str, list[Figure]]]:
    """Panels: figures that share a scale."""
    shares = [figure for figure in figures if figure.unit == OF_PLAIN]
    first = [*_of(figures, "ttft"), *_of(figures, "server")]
    level = [f for f in figures if f.scenario == "flat" and f.key != "flat/change"]
    return [
        ("Speed as a share of plain vLLM's, in the same round (line: goal)", shares),
        ("Decode speed with many distinct loadouts, as a share of one loadout's", level),
        ("Device bytes of a vector, as a share of its file", _of(figures, "memory")),
        ("To activate, µs", [f for f in _of(figures, "activation") if f.unit == "µs"]),
        ("A never-seen loadout adds to the first token, ms", first),
    ]


def _of(figures: tuple[Figure, ...], scenario: str) -> list[Figure]:
    return [figure for figure in figures if figure.scenario == scenario]


def _draw(axis: "Axes", title: str, figures: list[Figure], verdicts: dict[str, Verdict]) -> None:
    for row, figure in enumerate(figures):
        spread = figure.spread
        colour = COLOURS["stock" if "stock" in figure.label else "plugin"]
        reach = [[spread.median - spread.lower], [spread.upper - spread.median]]
        axis.barh(row, spread.median, color=colour, xerr=reach, height=0.7, ecolor="#555555")
        if (verdict := verdicts.get(figure.key)) is not None:
            axis.plot([verdict.goal.limit] * 2, [row - 0.45, row + 0.45], color="#c1121f")
    if any(figure.unit == "µs" for figure in figures):
        axis.set_xscale("log")
    axis.set_title(title, fontsize=10, loc="left")
    labels = [figure.label for figure in figures]
    axis.set_yticks(range(len(figures)), labels, fontsize=8, parse_math=False)
    axis.invert_yaxis()
    axis.tick_params(axis="x", labelsize=8)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
