"""Inner products of deltas: of whole parameters, or of each of their rows or columns."""

import math
from typing import Literal, TypeAlias

import numpy as np

from taskvectors.delta import Array, Shape
from taskvectors.sparsify import ordered_sum

_CHUNK = 1 << 20

Along: TypeAlias = Literal["all", "rows", "columns"]


class Groups:
    """The elements at `index`, int64 [U], of a parameter of `shape`, by what shares an angle.

    "rows" run along the last axis, "columns" along the first; a 1-D parameter is a single one.
    """

    def __init__(self, index: Array, shape: Shape, along: Along) -> None:
        self._index = index
        self._along = along
        self._width = {
            "all": max(1, math.prod(shape)),
            "rows": shape[-1] if shape else 1,
            "columns": math.prod(shape[1:]),
        }[along]
        width = max(1, self._width)
        self.count = width if along == "columns" else max(1, math.prod(shape) // width)

    def inner(self, left: Array, right: Array) -> Array:
        """`Σ left · right` of each group: float64 [count]; added in order, by no BLAS."""
        if self._along == "all":
            return np.array([dot(left, right)])
        sums = np.zeros(self.count)
        for begin in range(0, len(self._index), _CHUNK):
            block = slice(begin, begin + _CHUNK)
            products = left[block].astype(np.float64) * right[block].astype(np.float64)
            sums += np.bincount(self._of(self._index[block]), products, self.count)
        return sums

    def norm(self, values: Array) -> Array:
        """The Euclidean norm of each group: float64 [count]."""
        root: Array = np.sqrt(self.inner(values, values))
        return root

    def spread(self, factors: Array, values: Array) -> Array:
        """Each value times its group's factor: float32 [U]."""
        return np.asarray(factors.astype(np.float32)[self._of(self._index)] * values)

    def _of(self, index: Array) -> Array:
        return np.asarray(index % self._width if self._along == "columns" else index // self._width)


def dot(left: Array, right: Array) -> float:
    """`Σ left · right` of flat arrays in float64, added in order."""
    blocks = (slice(begin, begin + _CHUNK) for begin in range(0, len(left), _CHUNK))
    return sum(
        ordered_sum(left[block].astype(np.float64) * right[block].astype(np.float64))
        for block in blocks
    )


def arc_factors(cosine: Array, t: float, linear: Array) -> tuple[Array, Array]:
    """Factors of an arc's two ends at `t` (Shoemake 1985): `sin((1−t)θ)/sin θ`, `sin(tθ)/sin θ`.

    Where `linear` they are 1 − t and t. cosine, linear and both results: [n], float64 and bool.
    """
    theta = np.arccos(np.where(linear, 0.0, cosine))
    sine = np.sin(theta)
    first = np.where(linear, 1 - t, np.sin((1 - t) * theta) / sine)
    second = np.where(linear, t, np.sin(t * theta) / sine)
    return first, second


def share_of_second(weights: tuple[float, ...]) -> float:
    """t, as mergekit takes it from two weights: `w₂ / (w₁ + w₂)`, a half if they cancel."""
    first, second = weights
    return second / (first + second) if abs(first + second) >= 1e-6 else 0.5
