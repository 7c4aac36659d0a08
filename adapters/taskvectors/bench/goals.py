"""What the figures should be, and whether they are. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from taskvectors.bench.measures import Figure


@dataclass(frozen=True)
class Goal:
    """A limit on the median of a figure, by key."""

    key: str
    text: str
    sense: Literal["≥", "≤"]
    limit: float


@dataclass(frozen=True)
class Verdict:
    """A goal beside its figure."""

    goal: Goal
    value: float

    @property
    def is_met(self) -> bool:
        """Whether the value is on the right side of the limit."""
        goal = self.goal
        return self.value >= goal.limit if goal.sense == "≥" else self.value <= goal.limit

    def to_json(self) -> dict[str, object]:
        """As in the results' file."""
        goal = self.goal
        return {
            "key": goal.key,
            "text": goal.text,
            "goal": f"{goal.sense} {goal.limit:g}",
            "value": self.value,
            "is_met": self.is_met,
        }


def goals(batches: Sequence[int], many: int, *, on_gpu: bool) -> list[Goal]:
    """Those for a CPU or a GPU. many: how many loadouts are mixed in one batch."""
    base, mixed = (0.99, 0.90) if on_gpu else (0.98, 0.85)
    text = f"{many} loadouts, share of plain's speed"
    crowded = [batch for batch in batches if batch >= many]
    if not on_gpu:
        crowded = crowded[:1]
    found = [
        Goal(f"decode/{batch}/plugin/base", f"batch {batch}: base only", "≥", base)
        for batch in batches
    ]
    for batch in crowded:
        found.append(Goal(f"decode/{batch}/plugin/many", f"batch {batch}: {text}", "≥", mixed))
        over_stock = f"batch {batch}: {many} loadouts over stock's {many} adapters"
        found.append(Goal(f"decode/{batch}/stock-over-plugin/many", over_stock, "≥", 2.0))
    found += [
        Goal("prefill/plugin", "prefill, share of plain's speed", "≥", 0.85),
        Goal("flat/change", "change of speed, 1 to most loadouts", "≤", 0.05),
        Goal("activation/ratio", "activation, times faster than stock", "≥", 50.0),
        Goal("ttft/added", "a new loadout adds to the first token, ms", "≤", 0.5),
        Goal("server/added", "the same through the API server, ms", "≤", 0.5),
        Goal("memory/largest", "device bytes of a vector, share of its file", "≤", 1.3),
    ]
    return found


def judge(figures: Mapping[str, Figure], wanted: Sequence[Goal]) -> list[Verdict]:
    """The verdict on every goal whose figure was measured."""
    return [Verdict(g, figures[g.key].spread.median) for g in wanted if g.key in figures]
