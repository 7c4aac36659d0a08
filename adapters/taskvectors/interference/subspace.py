"""Which directions of a matrix a delta moves most, and how far two deltas share them."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from taskvectors.delta import Array, Delta, DenseDelta, LowRankDelta, Shape, SparseDelta

TOP = 8
"""Singular directions that are compared."""
WIDTH = 16
DEPTH = 6
SEED = 0
MAX_SIDES = 1 << 20
"""Rows and columns of a matrix whose directions are computed, together: bounds the memory."""
TOLERANCE = 1e-6
"""Directions with less than this share of the largest singular value do not count."""
DENSE_FROM = 1 / 8
"""From this density on, a sparse delta takes more memory by its entries than in dense form."""
CHUNK = 1 << 13
"""Entries that are multiplied at a time: 6 MB with the widest block."""


@dataclass(frozen=True, eq=False)
class Subspace:
    """The top singular directions of one delta, strongest first.

    left: float64 [out, r], right: float64 [in, r], each with orthonormal columns; r ≤ 8.
    """

    left: Array
    right: Array

    @property
    def rank(self) -> int:
        """r."""
        return int(self.left.shape[1])


@dataclass(frozen=True)
class Overlap:
    """‖UᵀU′‖²_F / r on both sides, and what two random subspaces give on average: r / n."""

    left: float
    right: float
    left_chance: float
    right_chance: float


def overlap(one: Subspace, other: Subspace) -> Overlap | None:
    """Of the top r directions that both have; None where one has none."""
    rank = min(one.rank, other.rank)
    if rank == 0:
        return None
    return Overlap(
        _shared(one.left[:, :rank], other.left[:, :rank]),
        _shared(one.right[:, :rank], other.right[:, :rank]),
        rank / one.left.shape[0],
        rank / one.right.shape[0],
    )


def _shared(one: Array, other: Array) -> float:
    return float(min(1.0, np.square(one.T @ other).sum() / one.shape[1]))


def subspace(delta: Delta) -> Subspace | None:
    """The directions of a delta of two axes; None for other deltas, empty ones and giants.

    Exact for low-rank deltas, by QR of the factors; for others by a randomised block Krylov
    method (Musco and Musco, arXiv 1504.05477, algorithm 2) with a fixed seed.
    """
    if len(delta.shape) != 2 or not all(delta.shape) or sum(delta.shape) > MAX_SIDES:
        return None
    if isinstance(delta, LowRankDelta):
        return _of_factors(delta)
    if isinstance(delta, SparseDelta) and delta.nnz < DENSE_FROM * math.prod(delta.shape):
        return _krylov(_Sparse.of(delta))
    return _krylov(_Dense(delta))


def _of_factors(delta: LowRankDelta) -> Subspace:
    """b a = Q₁ (R₁ R₂ᵀ) Q₂ᵀ, whose core has the singular values."""
    left, left_core = np.linalg.qr(_unit(delta.b))
    right, right_core = np.linalg.qr(_unit(delta.a).T)
    u, s, vt = np.linalg.svd(left_core @ right_core.T)
    rank = _rank(s) if delta.scale else 0
    return Subspace(left @ u[:, :rank], right @ vt[:rank].T)


def _krylov(matrix: "_Dense | _Sparse") -> Subspace:
    num_out, num_in = matrix.shape
    x = np.random.default_rng(SEED).standard_normal((num_in, min(WIDTH, num_out, num_in)))
    found = []
    for _ in range(DEPTH):
        found.append(np.linalg.qr(matrix.times(x))[0])
        x = matrix.transposed_times(found[-1])
    basis = np.linalg.qr(np.concatenate(found, axis=1))[0]
    image = matrix.transposed_times(basis)
    squares, turn = np.linalg.eigh(image.T @ image)
    s = np.sqrt(np.maximum(squares[::-1], 0.0))
    top = turn[:, ::-1][:, : _rank(s)]
    return Subspace(basis @ top, np.linalg.qr(image @ top)[0])


def _rank(s: Array) -> int:
    """How many of the singular values s, largest first, are compared."""
    return int(np.count_nonzero(s[:TOP] > TOLERANCE * s[0])) if len(s) else 0


def _unit(values: Array) -> Array:
    """float64, scaled to a largest magnitude of 1, so that no product overflows."""
    wide = values.astype(np.float64)
    largest = np.abs(wide).max(initial=0.0)
    return wide / largest if largest else wide


class _Dense:
    """A dense matrix, multiplied in float32."""

    def __init__(self, delta: DenseDelta | SparseDelta) -> None:
        self.shape = delta.shape
        self._values = delta.to_dense()
        self._values /= max(self._values.max(), -self._values.min()) or 1.0

    def times(self, x: Array) -> Array:
        """`self @ x`, x: [in, k]."""
        return (self._values @ x.astype(np.float32)).astype(np.float64)

    def transposed_times(self, x: Array) -> Array:
        """`self.T @ x`, x: [out, k]."""
        return (self._values.T @ x.astype(np.float32)).astype(np.float64)


class _Sparse:
    """A sparse matrix, never made dense: the entries of a row lie side by side and are summed.

    rows: int32 [n], ascending. columns: int32 [n]. values: float64 [n].
    """

    def __init__(self, shape: Shape, rows: Array, columns: Array, values: Array) -> None:
        self.shape = shape
        self._rows, self._columns, self._values = rows, columns, values

    @classmethod
    def of(cls, delta: SparseDelta) -> "_Sparse":
        rows = (delta.index // delta.shape[1]).astype(np.int32)
        columns = (delta.index % delta.shape[1]).astype(np.int32)
        return cls(delta.shape, rows, columns, _unit(delta.values))

    def times(self, x: Array) -> Array:
        """`self @ x`, x: [in, k]."""
        out = np.zeros((self.shape[0], x.shape[1]))
        for start in range(0, len(self._values), CHUNK):
            part = slice(start, start + CHUNK)
            rows = self._rows[part]
            entries = x[self._columns[part]]
            entries *= self._values[part, None]
            firsts = np.flatnonzero(np.diff(rows, prepend=-1))
            out[rows[firsts]] += np.add.reduceat(entries, firsts)  # a row may go on in the next
        return out

    def transposed_times(self, x: Array) -> Array:
        """`self.T @ x`, x: [out, k]."""
        return self._transposed.times(x)

    @cached_property
    def _transposed(self) -> "_Sparse":
        order = np.argsort(self._columns, kind="stable")
        entries = (self._columns[order], self._rows[order], self._values[order])
        return _Sparse((self.shape[1], self.shape[0]), *entries)
