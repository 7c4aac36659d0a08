"""What shadow variants showed: beside their originals, described and not judged. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from outfitter.control.experiments.definition import Definition
from outfitter.control.experiments.measures import FEEDBACK, RATIO, Metric, built_in

ALWAYS = ("error", "latency_s", "completion_tokens")


@dataclass(frozen=True)
class Pairs:
    """Requests of which both the copy and its original showed a metric: how many, and the sums."""

    count: int
    copies: float
    originals: float


@dataclass(frozen=True)
class Mirrored:
    """Of one shadow variant. num_requests: its copies. pairs: by metric's name."""

    num_requests: int
    pairs: Mapping[str, Pairs]


def pairable(definition: Definition) -> list[Metric]:
    """The metrics that a copy has too: nobody gives feedback on what nobody sees."""
    known = {**{name: built_in(name) for name in ALWAYS}, **definition.measured}
    own = [one for one in known.values() if one.source not in (FEEDBACK, "requests")]
    return [one for one in own if one.kind != RATIO]


def told(definition: Definition, seen: Mapping[str, Mirrored]) -> list[dict[str, Any]]:
    """Of every shadow variant: means over pairs; `value` is the copies', `original` the others'."""
    found = []
    for variant in definition.shadows:
        own = seen.get(variant.key, Mirrored(0, {}))
        metrics = [
            _told(metric, own.pairs.get(metric.name, Pairs(0, 0.0, 0.0)))
            for metric in pairable(definition)
        ]
        found.append({"variant": variant.key, "requests": own.num_requests, "metrics": metrics})
    return found


def _told(metric: Metric, pairs: Pairs) -> dict[str, Any]:
    number = pairs.count
    value = pairs.copies / number if number else None
    original = pairs.originals / number if number else None
    effect = None if value is None or original is None else value - original
    return {
        "name": metric.name,
        "kind": metric.kind,
        "direction": metric.direction,
        "pairs": number,
        "value": value,
        "original": original,
        "effect": effect,
        "lift": effect / original if effect is not None and original else None,
    }
