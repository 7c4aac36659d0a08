"""An estimate and its variance from moments: a variant against a multiple of the control. Pure."""

import math
from dataclasses import dataclass

from outfitter.statistics.moments import Moments


@dataclass(frozen=True)
class Estimate:
    """A number, the variance of its error, and from how many units it is."""

    value: float
    variance: float
    n: int

    @property
    def error(self) -> float:
        """The standard error."""
        return math.sqrt(self.variance)


def estimate(moments: Moments) -> Estimate | None:
    """Σx / Σy by the delta method; None below two units or without a denominator.

    The variance is that of the mean of x − R·y over units, divided by ȳ² (Deng, Knoblich & Lu,
    "Applying the delta method in metric analytics", KDD 2018, section 3), with n − 1 below.
    """
    if moments.n < 2 or not moments.y > 0:
        return None
    return Estimate(moments.value, _residual(moments) / moments.n, moments.n)


def contrast(control: Moments, variant: Moments, factor: float = 1.0) -> Estimate | None:
    """R_variant − factor · R_control; None where one of them has no estimate.

    Where both have a covariate z that varies, θ(z̄_variant − z̄_control) is taken off, with the θ
    that makes the variance least (CUPED: Deng, Xu, Kohavi & Walker, WSDM 2013). As z is from before
    the exposure, its expected difference is 0, so that nothing is biased.
    """
    before, after = estimate(control), estimate(variant)
    if before is None or after is None:
        return None
    value = after.value - factor * before.value
    variance = after.variance + factor**2 * before.variance
    spread = _z_variance(control) / control.n + _z_variance(variant) / variant.n
    if spread > 0:
        shared = _z_covariance(variant) / variant.n + factor * _z_covariance(control) / control.n
        theta = shared / spread
        value -= theta * (variant.z / variant.n - control.z / control.n)
        variance -= theta * shared
    return Estimate(value, max(0.0, variance), before.n + after.n)


def pooled_spread(control: Estimate, variant: Estimate) -> float:
    """What one unit adds to the variance, if the units of both spread alike."""
    total = control.n + variant.n
    return (control.variance * control.n**2 + variant.variance * variant.n**2) / total


def caution(control: Estimate, variant: Estimate, factor: float = 1.0) -> float:
    """By how much to multiply a contrast's variance where one has many more units; at least 1.

    A few units of a skewed metric have too small a mean and too small a spread at once, which an
    even split cancels and an uneven one does not. So the variance is at least what it would be if
    the units of both spread alike, which is mostly the larger one's to say. 1 for an even split.
    """
    own = variant.variance + factor**2 * control.variance
    pooled = pooled_spread(control, variant) * (1 / variant.n + factor**2 / control.n)
    return max(1.0, pooled / own) if own > 0 else 1.0


def _residual(m: Moments) -> float:
    """The variance between units of (x − R·y) / ȳ."""
    ratio, mean_y = m.value, m.y / m.n
    squares = m.xx - 2 * ratio * m.xy + ratio**2 * m.yy
    return max(0.0, squares) / (m.n - 1) / mean_y**2


def _z_variance(m: Moments) -> float:
    return max(0.0, m.zz - m.z * m.z / m.n) / (m.n - 1)


def _z_covariance(m: Moments) -> float:
    """Between units, of (x − R·y) / ȳ with z; the former's mean is 0."""
    return (m.xz - m.value * m.yz) / (m.n - 1) / (m.y / m.n)
