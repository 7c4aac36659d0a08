"""Experiments at some point of their life, without a gateway."""

from typing import Any

from outfitter.control.experiments.definition import Definition
from outfitter.control.experiments.report import Report, Standing, report
from outfitter.statistics.balance import Stretch
from outfitter.statistics.moments import Moments

NOW = 1_000_000.0


def definition(variants: tuple[str, ...] = ("warm",), **fields: Any) -> Definition:
    """Helpful answers decide, latency guards. variants: beside the control, of equal weight."""
    keys = ("control", *variants)
    given = {
        "name": "acme/tone",
        "variants": [{"key": key, "task_vectors": {key: 1}} for key in keys],
        "control": "control",
        "metrics": [{"name": "helpful", "kind": "proportion", "min_effect": 0.05}],
        "primary": "helpful",
        "guardrails": [{"metric": "latency_s", "margin": 0.1}],
        **fields,
    }
    return Definition.parse(given)


def share(successes: float, n: int) -> Moments:
    """Of a proportion."""
    return Moments(n, successes, successes, n, n, successes)


def seconds(mean: float, n: int, spread: float = 0.3) -> Moments:
    """Of a latency, a request per unit."""
    return Moments(n, n * mean, n * (mean**2 + spread**2), n, n, n * mean)


def standing(
    wanted: Definition,
    units: dict[str, int],
    helpful: dict[str, float],
    latency: dict[str, float] | None = None,
    **more: Any,
) -> Standing:
    """units: by variant. helpful: shares. latency: means, 1 second each without."""
    slow = latency or dict.fromkeys(units, 1.0)
    own = {
        "helpful": {key: share(round(helpful[key] * n), n) for key, n in units.items() if n},
        "latency_s": {key: seconds(slow[key], n) for key, n in units.items() if n},
    }
    stretch = Stretch(wanted.shares, units)
    return Standing(wanted, **{"now": NOW, "stretches": [stretch], "moments": own, **more})


def reported(*args: Any, **more: Any) -> Report:
    """The report of a standing."""
    return report(standing(*args, **more))
