"""The elements of deltas, a block at a time, and what two deltas do to the same elements."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import add
from typing import NamedTuple

import numpy as np

from taskvectors.delta import Array, Delta, LowRankDelta, Shape, SparseDelta

BLOCK = 1 << 17
"""Elements of a block: as float64 they stay in a core's own cache."""


class PairSums(NamedTuple):
    """Sums over elements of two deltas, and over matrices; those of more are their sum.

    common: elements that neither leaves at zero; opposed: the common ones of opposite signs;
    mass: min(|left|, |right|), summed.
    """

    left_energy: float = 0.0
    right_energy: float = 0.0
    left_nnz: int = 0
    right_nnz: int = 0
    dot: float = 0.0
    common: int = 0
    opposed: int = 0
    common_mass: float = 0.0
    opposed_mass: float = 0.0
    left_common_energy: float = 0.0
    right_common_energy: float = 0.0
    num_matrices: int = 0
    left_singular: float = 0.0
    right_singular: float = 0.0
    left_chance: float = 0.0
    right_chance: float = 0.0

    def plus(self, other: "PairSums") -> "PairSums":
        """The sums over the elements of both."""
        return PairSums(*map(add, self, other))


@dataclass(frozen=True, eq=False)
class Elements:
    """One block of a delta. values: float64 [n]; index: int64 [n], ascending, None for all."""

    values: Array
    index: Array | None = None

    @property
    def energy(self) -> float:
        """Σ d²."""
        return float(self.values @ self.values)

    @property
    def nnz(self) -> int:
        """How many are not zero."""
        return int(np.count_nonzero(self.values))


def blocks(deltas: Sequence[Delta], shape: Shape, size: int = BLOCK) -> Iterator[list[Elements]]:
    """The elements of `deltas`, all of `shape`, in blocks of about `size` (at least one row).

    A low-rank delta is multiplied out in float64 for each block, and never as a whole.
    """
    numel = int(np.prod(shape, dtype=np.int64))
    step = max(1, numel)
    if not all(isinstance(delta, SparseDelta) for delta in deltas):
        row = shape[-1] if shape and shape[-1] else 1
        step = max(1, size // row) * row
    for start in range(0, numel, step):
        stop = min(start + step, numel)
        yield [_elements(delta, start, stop) for delta in deltas]


def _elements(delta: Delta, start: int, stop: int) -> Elements:
    if isinstance(delta, SparseDelta):
        part = slice(*np.searchsorted(delta.index, (start, stop)))
        return Elements(delta.values[part].astype(np.float64), delta.index[part] - start)
    if isinstance(delta, LowRankDelta):
        width = delta.shape[1]
        rows = delta.b[start // width : stop // width].astype(np.float64)
        return Elements((rows @ delta.a.astype(np.float64)).reshape(-1) * delta.scale)
    return Elements(delta.values.reshape(-1)[start:stop].astype(np.float64))


def without_zeros(delta: Delta) -> Delta:
    """A sparse delta without the zeros that it stores; any other as it is."""
    if isinstance(delta, SparseDelta) and not (kept := delta.values != 0).all():
        return replace(delta, index=delta.index[kept], values=delta.values[kept])
    return delta


def compare_elements(left: Elements, right: Elements) -> PairSums:
    """The sums over one block of two deltas; of matrices it has none."""
    x, y = _aligned(left, right)
    product = x * y
    mass = np.minimum(np.abs(x), np.abs(y))
    opposed = product < 0
    return PairSums(
        left_energy=left.energy,
        right_energy=right.energy,
        left_nnz=left.nnz,
        right_nnz=right.nnz,
        dot=float(product.sum()),
        common=int(np.count_nonzero(product)),
        opposed=int(np.count_nonzero(opposed)),
        common_mass=float(mass.sum()),
        opposed_mass=float(mass @ opposed),
        left_common_energy=float((x * x) @ (y != 0)),
        right_common_energy=float((y * y) @ (x != 0)),
    )


def _aligned(left: Elements, right: Elements) -> tuple[Array, Array]:
    """Both deltas' values at the positions that both hold."""
    if right.index is None:
        at = slice(None) if left.index is None else left.index
        return left.values, right.values[at]
    if left.index is None:
        return left.values[right.index], right.values
    if len(left.index) > len(right.index):
        x, y = _aligned(right, left)
        return y, x
    at = np.searchsorted(right.index, left.index)
    inside = at < len(right.index)
    inside[inside] = right.index[at[inside]] == left.index[inside]
    return left.values[inside], right.values[at[inside]]
