"""Tails of the two distributions that are needed, without scipy. Pure."""

import math
from statistics import NormalDist

_NORMAL = NormalDist()


def normal_quantile(p: float) -> float:
    """z with P(Z ≤ z) = p, of a standard normal Z; 0 < p < 1."""
    return _NORMAL.inv_cdf(p)


def chi_square_tail(x: float, df: int) -> float:
    """P(X ≥ x) of a chi-square with `df` ≥ 1 degrees of freedom.

    In closed form for a whole number of them (Abramowitz & Stegun 26.4.4 and 26.4.5): with h = x/2,
    the tail is that of df − 2 plus h^(df/2 − 1)·e^(−h) / Γ(df/2).
    """
    assert df >= 1
    if x <= 0:
        return 1.0
    half = x / 2
    start = 2 - df % 2
    tail = math.exp(-half) if start == 2 else math.erfc(math.sqrt(half))
    for degrees in range(start + 2, df + 1, 2):
        order = degrees / 2
        tail += math.exp((order - 1) * math.log(half) - half - math.lgamma(order))
    return min(1.0, tail)
