"""How one parameter changes: sparse, low-rank or dense. numpy only.

Sums and scalings are computed in float32; negation keeps the stored dtype. Deltas are values: no
method changes its object.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

from taskvectors.errors import BaseMismatch, InvalidIndex, InvalidTensor

Array: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = tuple[int, ...]

VALUE_DTYPES = tuple(np.dtype(kind) for kind in (np.float32, np.float16, ml_dtypes.bfloat16))


@dataclass(frozen=True, eq=False)
class SparseDelta:
    """`delta.flat[index[k]] = values[k]`, zero elsewhere.

    shape: of the parameter. index: int64 [n], strictly ascending, row-major. values: [n] of
    float32, float16 or bfloat16. Raises InvalidTensor, InvalidIndex.
    """

    shape: Shape
    index: Array
    values: Array

    def __post_init__(self) -> None:
        _check_dtype(self.values)
        if self.index.dtype != np.int64 or self.index.ndim != 1 or self.values.ndim != 1:
            raise InvalidTensor("a sparse delta needs a 1-D int64 index and 1-D values")
        if len(self.index) != len(self.values):
            raise InvalidIndex(f"{len(self.index)} indices for {len(self.values)} values")
        if len(self.index) and not (
            self.index[0] >= 0
            and self.index[-1] < math.prod(self.shape)
            and bool((self.index[1:] > self.index[:-1]).all())
        ):
            raise InvalidIndex(f"indices must ascend strictly from 0 within {list(self.shape)}")

    @property
    def nnz(self) -> int:
        """The number of stored values."""
        return len(self.values)

    def to_dense(self) -> Array:
        """float32 of `shape`."""
        dense = np.zeros(math.prod(self.shape), np.float32)
        dense[self.index] = self.values
        return dense.reshape(self.shape)

    def __neg__(self) -> "SparseDelta":
        return replace(self, values=-self.values)

    def __mul__(self, factor: float) -> "SparseDelta":
        return replace(self, values=_scaled(self.values, factor))


@dataclass(frozen=True, eq=False)
class LowRankDelta:
    """`delta = scale * (b @ a)`, a: [r, in], b: [out, r], shape: (out, in).

    Raises InvalidTensor.
    """

    shape: Shape
    a: Array
    b: Array
    scale: float = 1.0

    def __post_init__(self) -> None:
        _check_dtype(self.a)
        _check_dtype(self.b)
        fits = len(self.shape) == self.a.ndim == self.b.ndim == 2
        if not fits or (self.b.shape[0], self.a.shape[1], self.a.shape[0]) != (
            *self.shape,
            self.b.shape[1],
        ):
            raise InvalidTensor(
                f"a {list(self.a.shape)} and b {list(self.b.shape)} do not make {list(self.shape)}"
            )

    @property
    def rank(self) -> int:
        """The number of rows of `a`."""
        return int(self.a.shape[0])

    @property
    def nnz(self) -> int:
        """Every element of the parameter counts."""
        return math.prod(self.shape)

    def to_dense(self) -> Array:
        """float32 of `shape`."""
        product = self.b.astype(np.float32) @ self.a.astype(np.float32)
        return np.asarray(product * np.float32(self.scale))

    def __neg__(self) -> "LowRankDelta":
        return replace(self, scale=-self.scale)

    def __mul__(self, factor: float) -> "LowRankDelta":
        return replace(self, scale=self.scale * _finite(factor))


@dataclass(frozen=True, eq=False)
class DenseDelta:
    """One value for each element. values: float32, float16 or bfloat16. Raises InvalidTensor."""

    values: Array

    def __post_init__(self) -> None:
        _check_dtype(self.values)

    @property
    def shape(self) -> Shape:
        """The parameter's shape."""
        return self.values.shape

    @property
    def nnz(self) -> int:
        """Every element of the parameter counts."""
        return int(self.values.size)

    def to_dense(self) -> Array:
        """float32 of `shape`."""
        return self.values.astype(np.float32)

    def __neg__(self) -> "DenseDelta":
        return DenseDelta(-self.values)

    def __mul__(self, factor: float) -> "DenseDelta":
        return DenseDelta(_scaled(self.values, factor))


Delta: TypeAlias = SparseDelta | LowRankDelta | DenseDelta


def add(name: str, left: Delta, right: Delta) -> Delta:
    """Sparse + sparse stays sparse, low rank + low rank stays low rank, all else is dense.

    name: for the message of BaseMismatch, raised where the shapes differ.
    """
    if left.shape != right.shape:
        raise shapes_differ(name, left.shape, right.shape)
    if isinstance(left, SparseDelta) and isinstance(right, SparseDelta):
        return _add_sparse(left, right)
    if isinstance(left, LowRankDelta) and isinstance(right, LowRankDelta):
        return _concatenate_ranks(left, right)
    return DenseDelta(left.to_dense() + right.to_dense())


def _add_sparse(left: SparseDelta, right: SparseDelta) -> SparseDelta:
    """Union of the supports, without the entries that cancel to zero."""
    index = np.union1d(left.index, right.index)
    values = np.zeros(len(index), np.float32)
    for delta in (left, right):
        values[np.searchsorted(index, delta.index)] += delta.values.astype(np.float32)
    kept = values != 0
    return SparseDelta(left.shape, index[kept], values[kept])


def _concatenate_ranks(left: LowRankDelta, right: LowRankDelta) -> LowRankDelta:
    """`s1 b1 a1 + s2 b2 a2 = [s1 b1, s2 b2] [a1; a2]`; a common scale stays a scale."""
    if left.scale == right.scale:
        a, b = (left.a, right.a), (left.b, right.b)
        return LowRankDelta(left.shape, _stack(a, axis=0), _stack(b, axis=1), left.scale)
    scaled = (_scaled(left.b, left.scale), _scaled(right.b, right.scale))
    return LowRankDelta(left.shape, _stack((left.a, right.a), axis=0), _stack(scaled, axis=1))


def _stack(parts: tuple[Array, Array], axis: int) -> Array:
    if parts[0].dtype != parts[1].dtype:
        parts = (parts[0].astype(np.float32), parts[1].astype(np.float32))
    return np.concatenate(parts, axis=axis)


def _scaled(values: Array, factor: float) -> Array:
    return np.asarray(values.astype(np.float32) * np.float32(_finite(factor)))


def _finite(factor: float) -> float:
    if not math.isfinite(factor):
        raise ValueError(f"a task vector can be scaled by a finite number only, not {factor}")
    return float(factor)


def _check_dtype(values: Array) -> None:
    if values.dtype not in VALUE_DTYPES:
        choices = ", ".join(dtype.name for dtype in VALUE_DTYPES)
        raise InvalidTensor(f"unsupported value dtype {values.dtype}; choose {choices}")


def shapes_differ(name: str, left: Shape, right: Shape) -> BaseMismatch:
    """The error for one parameter with two shapes."""
    return BaseMismatch(f"{name} has shape {list(left)} on one side and {list(right)} on the other")
