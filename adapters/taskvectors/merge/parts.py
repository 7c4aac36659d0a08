"""What a merge method sees of one parameter: every vector's delta, on the union of supports."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from taskvectors.delta import Array, Delta, DenseDelta, LowRankDelta, Shape, SparseDelta

_BLOCK = 1 << 16


@dataclass(frozen=True, eq=False)
class Part:
    """One parameter of K vectors.

    deltas: [K]; None where a vector leaves the parameter as it is or is not selected. weights:
    [K], each with the selection's factor in it. keys: [K], distinct; the random drops of a vector
    hang on its key.
    base: the base's own tensor, if it was given.
    """

    name: str
    shape: Shape
    deltas: tuple[Delta | None, ...]
    weights: tuple[float, ...]
    keys: tuple[str, ...]
    base: Array | None = None

    @property
    def numel(self) -> int:
        """Elements of the parameter."""
        return math.prod(self.shape)

    @cached_property
    def stack(self) -> "Stack":
        """The deltas side by side on the union of their supports."""
        return stack_deltas(self)


@dataclass(frozen=True, eq=False)
class Parts:
    """All parameters of a merge, in the order of `names`, each read when asked for, and again.

    base_shapes: of every parameter of the base, if it was given.
    """

    names: Sequence[str]
    read: Callable[[str], Part]
    base_shapes: Mapping[str, Shape] | None = None

    def __iter__(self) -> Iterator[Part]:
        return map(self.read, self.names)


@dataclass(frozen=True, eq=False)
class Stack:
    """`delta_k.flat[index] = values[k]`, all else zero.

    index: int64 [U], ascending. values: float32 [K, U].
    """

    index: Array
    values: Array


def stack_deltas(part: Part) -> Stack:
    """The union of the supports; every element where one delta is dense or low-rank."""
    sparse = [delta for delta in part.deltas if delta is not None]
    if all(isinstance(delta, SparseDelta) for delta in sparse):
        index = _union([delta.index for delta in sparse if isinstance(delta, SparseDelta)])
    else:
        index = np.arange(part.numel, dtype=np.int64)
    values = np.zeros((len(part.deltas), len(index)), np.float32)
    for row, delta in zip(values, part.deltas, strict=True):
        if isinstance(delta, SparseDelta):
            place = delta.index if len(index) == part.numel else np.searchsorted(index, delta.index)
            row[place] = delta.values
        elif delta is not None:
            row[:] = elements(delta)
    return Stack(index, values)


def elements(delta: DenseDelta | LowRankDelta) -> Array:
    """Every element of a delta, float32 [numel], the same bits on any machine.

    A low-rank product is summed rank by rank instead of by BLAS, whose order of summation is its
    own affair.
    """
    if isinstance(delta, DenseDelta):
        return delta.values.reshape(-1).astype(np.float32)
    rows = max(1, _BLOCK // max(1, delta.shape[1]))
    a = delta.a.astype(np.float32)
    b = delta.b.astype(np.float32) * np.float32(delta.scale)
    product = np.zeros(delta.shape, np.float32)
    for start in range(0, delta.shape[0], rows):
        block = product[start : start + rows]
        for left, right in zip(b[start : start + rows].T, a, strict=True):
            block += left[:, None] * right
    return product.reshape(-1)


def unstack(part: Part, values: Array) -> Delta | None:
    """The merged delta with `values` [U] on the stack's index: sparse, or dense if that is smaller.

    None where nothing is left.
    """
    kept = values != 0
    count = int(np.count_nonzero(kept))
    if count == 0:
        return None
    if len(part.shape) < 2 or 2 * count > part.numel:
        dense = np.zeros(part.numel, np.float32)
        dense[part.stack.index] = values
        return DenseDelta(dense.reshape(part.shape))
    return SparseDelta(part.shape, part.stack.index[kept], values[kept].astype(np.float32))


def _union(indices: list[Array]) -> Array:
    if len(indices) == 1:
        return indices[0]
    if not indices:
        return np.empty(0, np.int64)
    return np.unique(np.concatenate(indices))


def present(part: Part) -> Iterator[tuple[Delta, float]]:
    """The deltas that there are, with their weights."""
    for delta, weight in zip(part.deltas, part.weights, strict=True):
        if delta is not None:
            yield delta, weight
