"""Everything that is compared in an experiment, and with which chance of error. Pure.

Two promises, each with a chance of at most alpha to be broken, over all peeks together: that a
variant is not called better (or worse) on the primary metric unless it is; and that nothing is
called a breach unless it is one. alpha is divided by the number of variants beside the control in
the first, and by that times the number of guardrails in the second (Bonferroni: valid whatever
depends on what, also for units that are in many metrics). The primary metric is a guardrail too,
with a margin of 0 unless one is given. Other metrics are compared as the primary one is, each by
itself: among many of them, some mislead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from outfitter.control.experiments.compare import Comparison, Terms, compare
from outfitter.control.experiments.definition import THOMPSON, Definition
from outfitter.control.experiments.measures import Guardrail, Metric
from outfitter.statistics.balance import Balance, Stretch, balance
from outfitter.statistics.contrast import Estimate, estimate
from outfitter.statistics.moments import Moments

PRIMARY, GUARDRAIL, SECONDARY = ROLES = ("primary", "guardrail", "secondary")
BREACHED, SAFE, OPEN = STATES = ("breached", "safe", "open")


@dataclass(frozen=True)
class Standing:
    """What is known of an experiment. moments: by metric's name and variant. now: Unix time, s.

    stretches: new units, by the shares under which they came. step: of the ramp, from 0; stepped:
    when it began; step_units: units that came since.
    """

    definition: Definition
    now: float
    stretches: Sequence[Stretch]
    moments: Mapping[str, Mapping[str, Moments]]
    step: int = 0
    stepped: float | None = None
    step_units: int = 0


@dataclass(frozen=True)
class Rail:
    """A guardrail of a variant. comparison: variant − (1 ± margin)·control."""

    guardrail: Guardrail
    is_better_up: bool
    comparison: Comparison

    @property
    def state(self) -> str:
        """Surely beyond the margin, surely within it, or not known."""
        one = self.comparison
        is_bad, is_good = (
            (one.is_below(), one.is_above())
            if self.is_better_up
            else (one.is_above(), one.is_below())
        )
        return BREACHED if is_bad else SAFE if is_good else OPEN


@dataclass(frozen=True)
class Report:
    """comparisons: of every metric, with the control. estimates: by metric's name and variant."""

    standing: Standing
    balance: Balance
    comparisons: tuple[Comparison, ...]
    rails: tuple[Rail, ...]
    estimates: Mapping[str, Mapping[str, Estimate | None]] = field(default_factory=dict)

    @property
    def definition(self) -> Definition:
        """Of the experiment."""
        return self.standing.definition

    def units_of(self, variant: str) -> int:
        """Units that were first exposed to it."""
        return self.balance.counts.get(variant, 0)

    @cached_property
    def primary(self) -> dict[str, Comparison]:
        """By variant; empty where there is no primary metric."""
        name = self.definition.primary
        return {one.variant: one for one in self.comparisons if one.metric == name}


def treatments(definition: Definition) -> tuple[str, ...]:
    """The variants that are compared with the control: that serve, if only with a weight of 0."""
    return tuple(key for key in definition.shares if key != definition.control)


def guarded(definition: Definition) -> tuple[Guardrail, ...]:
    """The guardrails, and the primary metric unless it is one of them."""
    own = definition.guardrails
    primary = definition.primary
    if primary is None or any(rail.metric == primary for rail in own):
        return own
    return (*own, Guardrail(primary, 0.0))


def role_of(definition: Definition, metric: str) -> str:
    """What a metric is for."""
    if metric == definition.primary:
        return PRIMARY
    is_rail = any(rail.metric == metric for rail in definition.guardrails)
    return GUARDRAIL if is_rail else SECONDARY


def report(standing: Standing) -> Report:
    """Compare whatever can be compared."""
    definition = standing.definition
    metrics, own = definition.measured, treatments(definition)
    dealt = balance(standing.stretches)
    comparisons = tuple(
        _compare(standing, dealt, metrics[name], key, definition.alpha / len(own))
        for name in told_metrics(definition)
        for key in own
    )
    rails = guarded(definition)
    alpha = definition.alpha / (len(own) * len(rails)) if own and rails else definition.alpha
    checked = tuple(
        _rail(standing, dealt, rail, metrics[rail.metric], key, alpha)
        for rail in rails
        for key in own
    )
    estimates = {
        name: {key: estimate(m) for key, m in standing.moments.get(name, {}).items()}
        for name in told_metrics(definition)
    }
    return Report(standing, dealt, comparisons, checked, estimates)


def told_metrics(definition: Definition) -> tuple[str, ...]:
    """Names, the primary first, then the guardrails, then the others."""
    order = {role: place for place, role in enumerate(ROLES)}
    names = definition.measured
    return tuple(sorted(names, key=lambda name: order[role_of(definition, name)]))


def _rail(
    standing: Standing, dealt: Balance, rail: Guardrail, metric: Metric, key: str, alpha: float
) -> Rail:
    factor = 1 - rail.margin if metric.is_better_up else 1 + rail.margin
    if factor <= 0:
        what = "a margin below 1: whatever falls from a number to 0 is within it"
        return Rail(
            rail,
            metric.is_better_up,
            Comparison(rail.metric, key, factor, alpha, "none", 0, waits_for=what),
        )
    comparison = _compare(standing, dealt, metric, key, alpha, factor)
    return Rail(rail, metric.is_better_up, comparison)


def _compare(
    standing: Standing,
    dealt: Balance,
    metric: Metric,
    key: str,
    alpha: float,
    factor: float = 1.0,
) -> Comparison:
    definition = standing.definition
    own = standing.moments.get(metric.name, {})
    control, treated = own.get(definition.control, Moments()), own.get(key, Moments())
    units = dealt.counts.get(definition.control, 0) + dealt.counts.get(key, 0)
    is_whole = control.n + treated.n == units
    share = planned_share(standing.stretches, definition.control, key) if is_whole else None
    terms = Terms(alpha, share, definition.allocation == THOMPSON)
    return compare(metric, key, (control, treated), terms, factor)


def planned_share(stretches: Sequence[Stretch], control: str, variant: str) -> float | None:
    """Of units of either, the part that was to be the variant's; None where that was changed."""
    found: set[float] = set()
    for stretch in stretches:
        if any(stretch.counts.get(key) for key in (control, variant)):
            both = stretch.shares.get(control, 0.0) + stretch.shares.get(variant, 0.0)
            found.add(round(stretch.shares.get(variant, 0.0) / both, 4) if both else 0.0)
    share = found.pop() if len(found) == 1 else None
    return share if share is not None and 0 < share < 1 else None
