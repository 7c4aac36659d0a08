"""What the statistics know of a metric in one variant: ten sums over its units. Pure, additive.

A unit's requests are not independent of each other, units are. So a unit's observations are first
made into three numbers, and only these are summed over units:

| kind         | x                                       | y                             |
|--------------|-----------------------------------------|-------------------------------|
| `proportion` | the mean of its observations, in [0, 1] | 1                             |
| `mean`       | the sum of its observations             | how many observations it has  |
| `ratio`      | the sum of the numerator's              | the sum of the denominator's  |

The metric's value is always Σx / Σy: the mean of a latency is per request, not per unit, and its
error is that of units. `requests` is a number per unit (y = 1). Units without an observation (of
neither metric, in a ratio) are left out, not counted as zeros. z is the unit's mean of the
covariate before it was exposed, 0 where there is none or it has no past.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Moments:
    """Sums over the units of one variant for one metric.

    n: units. x, y, z: as the module says; xx is Σx², xy is Σx·y, and so on. Adding two of them is
    adding units: `a + b`.
    """

    n: int = 0
    x: float = 0.0
    xx: float = 0.0
    y: float = 0.0
    yy: float = 0.0
    xy: float = 0.0
    z: float = 0.0
    zz: float = 0.0
    xz: float = 0.0
    yz: float = 0.0

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @classmethod
    def of(cls, x: ArrayLike, y: ArrayLike = 1.0, z: ArrayLike = 0.0) -> Moments:
        """Of the units' own numbers; x: [n], y and z: [n] or one number for all."""
        xs = np.asarray(x, float)
        ys = np.broadcast_to(np.asarray(y, float), xs.shape)
        zs = np.broadcast_to(np.asarray(z, float), xs.shape)
        pairs = ((xs, ys), (xs, zs), (ys, zs))
        xy, xz, yz = (float(a @ b) for a, b in pairs)
        x1, y1, z1 = (float(a.sum()) for a in (xs, ys, zs))
        xx, yy, zz = (float(a @ a) for a in (xs, ys, zs))
        return cls(len(xs), x1, xx, y1, yy, xy, z1, zz, xz, yz)

    @property
    def value(self) -> float:
        """Σx / Σy; NaN while there is no denominator."""
        return self.x / self.y if self.y else math.nan


def total(moments: Iterable[Moments]) -> Moments:
    """Their sum; no units if there are none."""
    return sum(moments, Moments())
