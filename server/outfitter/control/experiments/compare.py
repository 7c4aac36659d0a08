"""A variant against the control on one metric: which statistic, on what terms. Pure."""

import math
from dataclasses import dataclass, replace

from outfitter.control.experiments.measures import PROPORTION, Metric
from outfitter.statistics import asymptotic, proportions
from outfitter.statistics.contrast import (
    Estimate,
    caution,
    contrast,
    estimate,
    pooled_spread,
)
from outfitter.statistics.moments import Moments
from outfitter.statistics.proportions import Counts

EXACT, ASYMPTOTIC, EXACT_ARMS, ASYMPTOTIC_ARMS = METHODS = (
    *("exact", "asymptotic", "exact by arm", "asymptotic by arm"),
)
"""By arm: each variant's own interval, where traffic follows what was seen (Thompson sampling)."""


@dataclass(frozen=True)
class Terms:
    """How a comparison is made.

    alpha: the chance that its interval ever misses. share: that of one of their units to be the
    variant's, as planned, and None where it is not known for the units that have the metric.
    is_adaptive: whether traffic followed the results.
    """

    alpha: float
    share: float | None = None
    is_adaptive: bool = False


@dataclass(frozen=True)
class Comparison:
    """variant − factor · control.

    effect: the estimate. lower, upper: where it is, at all peeks together; None while too little
    is known, and `waits_for` then says of what. p_value: always valid, for an effect of 0; None
    where there is only an interval. n: units of both.
    """

    metric: str
    variant: str
    factor: float
    alpha: float
    method: str
    n: int
    effect: float | None = None
    lower: float | None = None
    upper: float | None = None
    p_value: float | None = None
    has_covariate: bool = False
    waits_for: str | None = None

    @property
    def is_known(self) -> bool:
        """Whether there is an interval."""
        return self.lower is not None

    def is_above(self, bound: float = 0.0) -> bool:
        """Whether all of the interval is."""
        return self.lower is not None and self.lower > bound

    def is_below(self, bound: float = 0.0) -> bool:
        """Whether all of the interval is."""
        return self.upper is not None and self.upper < bound

    @property
    def half_width(self) -> float | None:
        """Of the interval."""
        if self.lower is None or self.upper is None:
            return None
        return (self.upper - self.lower) / 2


def compare(
    metric: Metric,
    variant: str,
    moments: tuple[Moments, Moments],
    terms: Terms,
    factor: float = 1.0,
) -> Comparison:
    """moments: the control's and the variant's. factor: > 0."""
    control, treated = moments
    is_covered = metric.covariate is not None and control.zz + treated.zz > 0
    is_exact = metric.kind == PROPORTION and not is_covered and _is_bounded(control + treated)
    own = (EXACT_ARMS, ASYMPTOTIC_ARMS) if terms.is_adaptive else (EXACT, ASYMPTOTIC)
    method = own[0 if is_exact else 1]
    n = control.n + treated.n
    blank = Comparison(metric.name, variant, factor, terms.alpha, method, n)
    if is_exact:
        return _exact(blank, control, treated, terms)
    return _asymptotic(blank, control, treated, terms)


def units_needed(comparison: Comparison, half_width: float) -> int | None:
    """About how many units of both make an interval that reaches so far to each side.

    By the spread that is seen now; None where that says nothing, or for more than a billion.
    """
    now = comparison.half_width
    if now is None or comparison.effect is None or not half_width > 0 or not comparison.n:
        return None
    per_unit = now / asymptotic.z_of(comparison.n, comparison.alpha) * math.sqrt(comparison.n)
    low, high = 1, 10**9
    while low < high:
        n = (low + high) // 2
        if asymptotic.z_of(n, comparison.alpha) * per_unit / math.sqrt(n) <= half_width:
            high = n
        else:
            low = n + 1
    return low if low < 10**9 else None


def _exact(blank: Comparison, control: Moments, treated: Moments, terms: Terms) -> Comparison:
    if not control.n or not treated.n:
        return _waiting(blank, "a unit of each")
    before, after = Counts(control.x, control.n), Counts(treated.x, treated.n)
    effect, p_value = after.share - blank.factor * before.share, None
    if terms.is_adaptive:
        lower, upper = proportions.arms_interval(before, after, terms.alpha, blank.factor)
    else:
        share = terms.share if terms.share else treated.n / blank.n
        lower, upper = proportions.interval(before, after, share, terms.alpha, blank.factor)
        log_e = proportions.log_e_value(before, after, share, 0.0, blank.factor)
        p_value = math.exp(-max(0.0, float(log_e)))
    return _known(blank, effect, (lower, upper), p_value)


def _asymptotic(blank: Comparison, control: Moments, treated: Moments, terms: Terms) -> Comparison:
    fewest = min(control.n, treated.n)
    if fewest < asymptotic.MIN_UNITS:
        return _waiting(blank, f"{asymptotic.MIN_UNITS} units of each, not {fewest}")
    difference = contrast(control, treated, blank.factor)
    before, after = estimate(control), estimate(treated)
    if difference is None or before is None or after is None:
        return _waiting(blank, "a denominator that is not 0")
    if not difference.variance > 0:
        return _waiting(blank, "units that differ from each other")
    if terms.is_adaptive:
        return _by_arm(blank, before, after)
    n, alpha = difference.n, terms.alpha
    error = difference.error * math.sqrt(caution(before, after, blank.factor))
    reach = error * asymptotic.z_of(n, alpha)
    log_e = asymptotic.log_e_value(difference.value / error, n, alpha)
    p_value = math.exp(-max(0.0, log_e))
    has_covariate = control.zz + treated.zz > 0
    ends = (difference.value - reach, difference.value + reach)
    return _known(blank, difference.value, ends, p_value, has_covariate=has_covariate)


def _by_arm(blank: Comparison, before: Estimate, after: Estimate) -> Comparison:
    half, pooled = blank.alpha / 2, pooled_spread(before, after)
    errors = [math.sqrt(max(arm.variance, pooled / arm.n)) for arm in (before, after)]
    reach = blank.factor * errors[0] * asymptotic.z_of(before.n, half)
    reach += errors[1] * asymptotic.z_of(after.n, half)
    value = after.value - blank.factor * before.value
    return _known(blank, value, (value - reach, value + reach), None)


def _known(
    blank: Comparison,
    effect: float,
    ends: tuple[float, float],
    p_value: float | None,
    *,
    has_covariate: bool = False,
) -> Comparison:
    known = replace(blank, effect=effect, lower=ends[0], upper=ends[1])
    return replace(known, p_value=p_value, has_covariate=has_covariate)


def _waiting(blank: Comparison, what: str) -> Comparison:
    return replace(blank, waits_for=what)


def _is_bounded(moments: Moments) -> bool:
    """Whether all values may be in [0, 1], as far as sums tell."""
    slack = 1e-9 * (1 + moments.n)
    return (
        -slack <= moments.x <= moments.n + slack
        and moments.xx <= moments.x + slack
        and abs(moments.y - moments.n) <= slack
    )
