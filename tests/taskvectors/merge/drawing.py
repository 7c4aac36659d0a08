"""Drawn task vectors of every kind, and their dense likeness for oracles."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from hypothesis import strategies as st

from taskvectors.delta import Array, Delta
from taskvectors.merge import merge_vectors
from taskvectors.vector import BaseInfo, DenseDelta, LowRankDelta, SparseDelta, TaskVector
from tests.taskvectors.making import FINGERPRINT, save_checkpoint

WEIGHTS = (1.0, 0.5, 0.25, 2.0, -0.5, -1.0, 0.0)
KINDS = ("sparse", "low rank", "dense", "absent")
TOLERANCE = 2e-6
"""Of float32 results against float64 oracles, times the largest magnitude involved."""

Dense = dict[str, Array]


@dataclass
class Drawn:
    """K vectors and their weights. dense: of each vector every parameter, float32."""

    vectors: list[TaskVector]
    weights: list[float]
    shapes: dict[str, tuple[int, ...]]
    dense: list[Dense] = field(init=False)

    def __post_init__(self) -> None:
        self.dense = [
            {
                name: vector.parameters[name].to_dense()
                if name in vector.parameters
                else np.zeros(shape, np.float32)
                for name, shape in self.shapes.items()
            }
            for vector in self.vectors
        ]

    def merged(
        self, method: str, *, order: Sequence[int] | None = None, **parameters: Any
    ) -> Dense:
        """Our merge, as float32 arrays of every parameter."""
        order = range(len(self.vectors)) if order is None else order
        vector = merge_vectors(
            [self.vectors[k] for k in order],
            [self.weights[k] for k in order],
            method,
            **parameters,
        )
        return {
            name: vector.parameters[name].to_dense()
            if name in vector.parameters
            else np.zeros(shape, np.float32)
            for name, shape in self.shapes.items()
        }

    def tensors(self, name: str, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
        """One parameter of each vector; in float64 products of factors are not rounded."""
        rounded = [torch.from_numpy(dense[name].copy()).to(dtype) for dense in self.dense]
        return [
            torch.from_numpy(delta.b.astype(float) @ delta.a.astype(float) * delta.scale)
            if isinstance(delta, LowRankDelta) and dtype == torch.float64
            else dense
            for vector, dense in zip(self.vectors, rounded, strict=True)
            for delta in [vector.parameters.get(name)]
        ]


@st.composite
def drawn(
    draw: st.DrawFn,
    *,
    kinds: Sequence[str] = KINDS,
    count: tuple[int, int] = (1, 4),
    weights: Sequence[float] = WEIGHTS,
    tied: bool | None = None,
    least: int = 1,
) -> Drawn:
    """A matrix, a vector and a three-dimensional parameter of each of `count` task vectors.

    tied: values are few and exact, so that magnitudes repeat and sums cancel; None draws it.
    least: of the matrix's sides.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    few = draw(st.booleans()) if tied is None else tied
    sides = st.integers(least, 9)
    shapes: dict[str, tuple[int, ...]] = {
        "layers.0.up.weight": (draw(sides), draw(sides)),
        "layers.0.conv.weight": (draw(st.integers(1, 3)), 2, draw(st.integers(1, 4))),
        "norm.weight": (draw(st.integers(1, 7)),),
    }
    number = draw(st.integers(*count))
    vectors = [
        vector_of(
            {
                name: delta
                for name, shape in shapes.items()
                if (delta := random_delta(rng, shape, draw(st.sampled_from(kinds)), few))
            }
        )
        for _ in range(number)
    ]
    return Drawn(vectors, [draw(st.sampled_from(weights)) for _ in vectors], shapes)


def random_delta(
    rng: np.random.Generator, shape: tuple[int, ...], kind: str, tied: bool
) -> Delta | None:
    """Tied values are multiples of 1/8 up to 1, products of factors included."""
    numel = int(np.prod(shape))
    if kind == "absent":
        return None
    if kind == "sparse":
        index = np.flatnonzero(rng.random(numel) < 0.4).astype(np.int64)
        return SparseDelta(shape, index, values_of(rng, (len(index),), tied))
    if kind == "low rank" and len(shape) == 2:
        rank = int(rng.integers(1, 3))
        a, b = values_of(rng, (rank, shape[1]), tied), values_of(rng, (shape[0], rank), tied)
        return LowRankDelta(shape, a, b, 0.5)
    dense = values_of(rng, shape, tied)
    # Rounded to bfloat16, normal values would repeat.
    return DenseDelta(dense.astype(ml_dtypes.bfloat16) if tied and rng.random() < 0.3 else dense)


def values_of(rng: np.random.Generator, shape: tuple[int, ...], tied: bool) -> Array:
    """Normal, or of {0, ±¼, ±½, ±1}; float32."""
    if tied:
        return rng.choice(np.array([0, 0.25, -0.25, 0.5, -0.5, 1, -1], np.float32), shape)
    return rng.standard_normal(shape).astype(np.float32)


def vector_of(parameters: dict[str, Delta]) -> TaskVector:
    return TaskVector(BaseInfo("example/base", FINGERPRINT), parameters)


def matrices(*arrays: Any, weights: Sequence[float] | None = None) -> Drawn:
    """Vectors of one dense parameter."""
    dense = [np.asarray(array, np.float32) for array in arrays]
    vectors = [vector_of({"w": DenseDelta(array)}) for array in dense]
    return Drawn(vectors, list(weights or [1.0] * len(dense)), {"w": dense[0].shape})


def golden(
    method: str, weights: Sequence[float] = (1.0, 0.7, -0.3), **parameters: Any
) -> TaskVector:
    """A merge of three fixed sparse vectors, to be the same bytes for ever."""
    rng = np.random.default_rng(0)
    vectors = [
        vector_of({"w": SparseDelta((40, 50), index, values_of(rng, (len(index),), False))})
        for index in (np.flatnonzero(rng.random(2000) < 0.1) for _ in range(3))
    ]
    return merge_vectors(vectors, weights, method, **parameters)


def digest_of(delta: SparseDelta) -> str:
    """16 hex digits of the index's and the values' bytes."""
    data = delta.index.astype("<i8").tobytes() + delta.values.astype("<f4").tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


def base_of(case: Drawn, folder: Path, make: Callable[[tuple[int, ...]], Array]) -> Dense:
    """A checkpoint in `folder` with all of the parameters; returns them."""
    tensors = {name: make(shape) for name, shape in case.shapes.items()}
    save_checkpoint(folder, tensors)
    return tensors


def assert_close(
    actual: Array, expected: torch.Tensor | Array, *, times: float = 1.0, scale: float = 0.0
) -> None:
    """Within TOLERANCE × `times` of the largest expected magnitude, or of `scale` if larger."""
    wanted = np.asarray(expected, np.float64)
    assert actual.shape == wanted.shape
    size = max(float(np.abs(wanted).max(initial=0.0)), scale)
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=TOLERANCE * times * size)
