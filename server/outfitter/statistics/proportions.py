"""Proportions: e-values that are exact at any number of units, and the intervals they give. Pure.

Units have values in [0, 1], mostly 0 or 1. For the null "q − factor·p = effect" (p of the control,
q of the variant) a bet is made on every unit: the capital is multiplied by 1 + λ·(x − p) for a unit
of the control and by 1 + κ·(x − q) for one of the variant, with κ = t / (factor · w), λ = −t /
(1 − w), where w is the chance of a unit to be the variant's. Whatever true proportions the null
allows, a unit's multiplier has the mean 1: the p of the bet need not be the true one. So the
capital is an e-process, and so is its mean over many bets (p, t), fixed before any data; by Ville's
inequality it ever reaches 1/α with a chance of at most α. The bet (p, t) is the growth-optimal one
against an alternative whose projection on the null it is (Grünwald, de Heide & Koolen 1906.07801;
Turner, Ly & Grünwald 2106.02693; betting: Waudby-Smith & Ramdas 2010.09686).

Only counts are needed where values are 0 or 1. For values between, x·log(1 + λ(1 − p)) +
(1 − x)·log(1 − λp) ≤ log(1 + λ(x − p)) as the logarithm is concave: the sums say less, never more.

Assumed: units are independent; a unit's value does not change any more once it is counted; w is the
chance by which units were dealt. Where w is taken from the data (not every unit has feedback), each
peek on its own is exact still, all peeks together hold by simulation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Refuted = Callable[[Array], NDArray[np.bool_]]

_BASE = np.sin(np.linspace(0, np.pi / 2, 7)) ** 2
"""Where on the null bets are made: evenly by the arcsine of the root, in which errors are alike."""
_SIZES = np.geomspace(0.003, 0.9, 12)
_STAKES = np.concatenate([-_SIZES[::-1], _SIZES])
"""The size of bets, as a part of the greatest that cannot ruin; negative: on a smaller effect."""
_WEIGHTS = np.exp(-((np.log(np.abs(_STAKES) / 0.07) / 1.1) ** 2) / 2)
_LOG_WEIGHTS = np.log(_WEIGHTS / _WEIGHTS.sum())
"""Of stakes: most for those that decide between a thousand and a hundred thousand units."""
_ROUNDS, _POINTS = 7, 9
_MARGIN = 1e-9


@dataclass(frozen=True)
class Counts:
    """successes: the sum of values in [0, 1]; n: of units. Either may be an array, [E]."""

    successes: Any
    n: Any

    @property
    def share(self) -> float:
        """The mean; 1/2 where there is no unit. Not of arrays."""
        return float(self.successes / self.n) if self.n else 0.5

    def against(self, shape: int) -> tuple[Array, Array]:
        """Successes and failures, with `shape` axes in all, the first as it is."""
        successes, n = (np.asarray(one, float) for one in (self.successes, self.n))
        axes = tuple(range(successes.ndim, shape))
        return np.expand_dims(successes, axes), np.expand_dims(n - successes, axes)


def log_e_value(
    control: Counts,
    variant: Counts,
    share: ArrayLike,
    effect: ArrayLike = 0.0,
    factor: float = 1.0,
) -> Array:
    """The log of the evidence against q − factor·p = effect; each [E] or a number.

    share: w, the chance that one of these units is the variant's, 0 < w < 1; factor > 0.
    """
    shape = np.broadcast(effect, share, control.successes, variant.successes).shape
    rows = np.atleast_1d(np.asarray(effect, float))
    return _pooled(control, variant, share, rows, factor).reshape(shape)


def interval(
    control: Counts, variant: Counts, share: float, alpha: float, factor: float = 1.0
) -> tuple[float, float]:
    """All effects that the evidence does not refute: holds at all peeks together with 1 − α.

    Agrees with the test: 0 is outside where `log_e_value` at 0 is ≥ log(1/α), but for rounding.
    """
    estimate = variant.share - factor * control.share
    bar = -np.log(alpha)

    def refuted(effects: Array) -> NDArray[np.bool_]:
        return np.asarray(_pooled(control, variant, share, effects, factor) >= bar)

    return _ends(refuted, estimate, (-factor, 1.0))


def arm_interval(counts: Counts, alpha: float) -> tuple[float, float]:
    """The same for one proportion by itself, however units came to it.

    Capital grows by 1 + λ(x − p) per unit; valid too where who gets what depends on what was seen.
    """

    def refuted(proportions: Array) -> NDArray[np.bool_]:
        p = np.clip(proportions, _MARGIN, 1 - _MARGIN)[:, None]
        stakes = np.where(_STAKES > 0, _STAKES / p, _STAKES / (1 - p))
        logs = _log_capital(counts, stakes, p) + _LOG_WEIGHTS
        return np.asarray(_log_sum(logs) >= -np.log(alpha))

    return _ends(refuted, counts.share, (0.0, 1.0))


def arms_interval(
    control: Counts, variant: Counts, alpha: float, factor: float = 1.0
) -> tuple[float, float]:
    """q − factor·p from each arm's own interval at α/2: wider, and needs no w."""
    low_p, high_p = arm_interval(control, alpha / 2)
    low_q, high_q = arm_interval(variant, alpha / 2)
    return low_q - factor * high_p, high_q - factor * low_p


def _pooled(
    control: Counts, variant: Counts, share: ArrayLike, effects: Array, factor: float
) -> Array:
    """The log of the mean capital over all bets; effects: [E]."""
    shares = np.asarray(share, float)
    assert np.all((shares > 0) & (shares < 1))
    assert factor > 0
    shares = np.expand_dims(shares, tuple(range(shares.ndim, 3)))
    low = np.maximum(0.0, -effects / factor)
    high = np.minimum(1.0, (1 - effects) / factor)
    p = low[:, None] + (high - low)[:, None] * _BASE  # [E, B]
    q = np.clip(factor * p + effects[:, None], _MARGIN, 1 - _MARGIN)[..., None]
    p = np.clip(p, _MARGIN, 1 - _MARGIN)[..., None]
    a, b = 1 - shares, shares * factor  # λ = −t/a, κ = t/b
    most = np.minimum(b / q, a / (1 - p))
    least = np.minimum(b / (1 - q), a / p)
    t = np.where(_STAKES > 0, _STAKES * most, _STAKES * least)  # [E, B, S]
    logs = _log_capital(control, -t / a, p) + _log_capital(variant, t / b, q)
    weighted = (logs + _LOG_WEIGHTS).reshape(len(logs), -1)
    return np.asarray(_log_sum(weighted) - np.log(len(_BASE)))


def _log_capital(counts: Counts, stakes: Array, p: Array) -> Array:
    """Σ over units of log(1 + stake·(x − p)), by the counts alone."""
    won, lost = np.log1p(stakes * (1 - p)), np.log1p(-stakes * p)
    successes, failures = counts.against(won.ndim)
    return np.asarray(successes * won + failures * lost)


def _log_sum(logs: Array) -> Array:
    """The log of the sum over the last axis of what has these logs."""
    top = logs.max(axis=-1)
    return np.asarray(top + np.log(np.exp(logs - top[..., None]).sum(axis=-1)))


def _ends(refuted: Refuted, estimate: float, domain: tuple[float, float]) -> tuple[float, float]:
    """The least and the greatest value that is not refuted, a hair to the outside."""
    return _outermost(refuted, estimate, domain[0]), _outermost(refuted, estimate, domain[1])


def _outermost(refuted: Refuted, inside: float, end: float) -> float:
    """Between `inside` and `end`; narrows in on where refuting begins."""
    outside = end
    for _ in range(_ROUNDS):
        points = np.linspace(outside, inside, _POINTS)
        kept = np.flatnonzero(~refuted(points))
        first = int(kept[0]) if len(kept) else len(points) - 1
        if first == 0:
            return float(points[0])
        outside, inside = float(points[first - 1]), float(points[first])
    return outside
