"""A run's outcome as rows of text, and as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from taskvectors.bench.goals import Verdict
from taskvectors.bench.machine import shown_path
from taskvectors.bench.measures import Figure
from taskvectors.bench.run import Outcome

HEADS = ("figure", "median", "quartiles", "unit", "goal", "")
WHAT = (
    "engines take turns, one step each; a figure is the median over rounds of what was compared"
    " within one round"
)


@dataclass(frozen=True)
class Row:
    """One line of the table. is_met: None where there is no goal."""

    cells: tuple[str, str, str, str, str, str]
    is_met: bool | None


def rows(outcome: Outcome) -> Iterator[Row]:
    """One for each figure, with its goal beside it."""
    verdicts = {verdict.goal.key: verdict for verdict in outcome.verdicts}
    for figure in outcome.figures:
        yield _row(figure, verdicts.get(figure.key))


def text_table(outcome: Outcome) -> str:
    """The table in plain text."""
    lines: list[Sequence[str]] = [HEADS, *(row.cells for row in rows(outcome))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def summary(outcome: Outcome) -> str:
    """How many goals are met, and on what."""
    settings = outcome.settings
    met = sum(verdict.is_met for verdict in outcome.verdicts)
    mode = "eager" if settings.eager else "compiled"
    return (
        f"{met} of {len(outcome.verdicts)} goals met; {outcome.device}, {settings.value_dtype},"
        f" {mode}, {settings.threads} thread(s), seed {settings.seed}"
    )


def to_json(outcome: Outcome, command: str) -> dict[str, object]:
    """The results' file, but for the machine."""
    settings = outcome.settings
    return {
        "command": command,
        "seed": settings.seed,
        "what": WHAT,
        "settings": {
            "model": shown_path(settings.model),
            "device": outcome.device,
            "dtype": settings.value_dtype,
            "eager": settings.eager,
            "graphs_and_compilation": _graphs(outcome),
            "threads": settings.threads,
            "random_weights": settings.dummy,
            "quick": settings.quick,
            "batches": list(settings.decode_batches),
            "steps": settings.rounds,
            "scenarios": list(settings.scenarios),
        },
        "figures": [figure.to_json() for figure in outcome.figures],
        "goals": [verdict.to_json() for verdict in outcome.verdicts],
    }


def _graphs(outcome: Outcome) -> str:
    if outcome.settings.eager:
        return "off in all engines"
    if outcome.device == "cpu":
        return "plain and plugin compiled; stock eager: vLLM compiles nothing there with LoRA"
    return "on in all engines"


def _row(figure: Figure, verdict: Verdict | None) -> Row:
    spread = figure.spread
    error = "" if figure.error is None else f" ± {figure.error:.3g}"
    quartiles = f"{_number(spread.lower)} – {_number(spread.upper)}" if spread.count > 1 else ""
    goal = f"{verdict.goal.sense} {verdict.goal.limit:g}" if verdict else ""
    outcome = {None: "", True: "met", False: "missed"}[verdict.is_met if verdict else None]
    median = _number(spread.median) + error
    cells = (figure.label, median, quartiles, figure.unit, goal, outcome)
    return Row(cells, verdict.is_met if verdict else None)


def _number(value: float) -> str:
    """Three digits, but whole numbers from 100 on."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3f}"
