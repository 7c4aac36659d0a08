"""NuSLERP against mergekit's."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskvectors.errors import InvalidLoadout
from taskvectors.merge import merge_vectors
from taskvectors.vector import SparseDelta
from tests.taskvectors.merge import mergekit_oracle as mergekit
from tests.taskvectors.merge.drawing import TOLERANCE, Drawn, drawn, golden, matrices

PAIR_WEIGHTS = (1.0, 0.5, 0.25, 2.0, -0.5, -1.0)


@settings(max_examples=100, deadline=None)
@given(drawn(count=(2, 2), weights=PAIR_WEIGHTS), st.booleans(), st.booleans())
def test_nuslerp_is_mergekits(case: Drawn, flatten: bool, row_wise: bool) -> None:
    """One angle, or one for each row or column; straight where vectors are parallel or opposed."""
    merged = case.merged("nuslerp", flatten=flatten, row_wise=row_wise)
    total = sum(case.weights)
    t = case.weights[1] / total if total else 0.5
    for name in case.shapes:
        first, second = case.tensors(name)
        expected = mergekit.merged(
            "nuslerp",
            [first, second],
            {"weight": case.weights},
            nuslerp_flatten=flatten,
            nuslerp_row_wise=row_wise,
        )
        dims = tuple(range(first.dim())) if flatten else (0 if row_wise else -1)
        sine = sine_squared(first, second, dims)
        straight = (1 - t) * first + t * second
        expected = torch.where(sine < 1e-9, straight, expected)
        size = first.abs().max() + second.abs().max()
        bound = TOLERANCE * size * (1 + abs(t) + abs(1 - t))
        error = (torch.from_numpy(merged[name]) - expected).abs()
        error = torch.where(sine < 1e-9, error, error * sine.sqrt())
        near = (sine >= 1e-9) & (sine < 1e-5)  # where the limit of float32 decides
        assert (near | (error <= bound)).all()


def sine_squared(first: torch.Tensor, second: torch.Tensor, dims: Any) -> torch.Tensor:
    """`1 − cos²` of each angle, broadcast to all elements."""
    norms = [tensor.square().sum(dims, keepdim=True).sqrt() for tensor in (first, second)]
    cosine = (first * second).sum(dims, keepdim=True) / (norms[0] * norms[1]).clip(1e-14)
    return (1 - cosine.square()).expand(first.shape)


@pytest.mark.parametrize("scale", [1e-6, 1e-8])
def test_tiny_vectors_are_as_in_mergekit(scale: float) -> None:
    """Norms are clipped at 1e-7, and so the angle of smaller vectors is nearer to a right one."""
    case = matrices(scale * np.array([0.03, 0.02]), scale * np.array([0.02, 0.05]))
    expected = mergekit.merged("nuslerp", case.tensors("w"), {"weight": case.weights})
    np.testing.assert_allclose(case.merged("nuslerp")["w"], expected, rtol=1e-5)


def test_the_ends_are_the_vectors() -> None:
    """All weight on one vector gives that vector, whatever the weight."""
    case = matrices([[1.0, 2.0]], [[-3.0, 0.5]])
    for weights, kept in (([5.0, 0.0], 0), ([0.0, 0.1], 1)):
        case.weights = weights
        np.testing.assert_allclose(case.merged("nuslerp")["w"], case.dense[kept]["w"], rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(drawn(count=(2, 2), weights=(1.0, 0.5, 3.0)), st.booleans())
def test_nuslerp_does_not_see_the_order(case: Drawn, flatten: bool) -> None:
    """Each vector goes with its weight."""
    first = case.merged("nuslerp", flatten=flatten)
    second = case.merged("nuslerp", flatten=flatten, order=[1, 0])
    for name in case.shapes:
        size = max(1.0, float(np.abs(first[name]).max(initial=0)))
        np.testing.assert_allclose(first[name], second[name], rtol=0, atol=1e-5 * size)


def test_opposed_vectors_go_straight() -> None:
    """Exactly and almost opposed vectors give no huge numbers."""
    values = np.random.default_rng(1).standard_normal(50).astype(np.float32)
    for other in (-values, -3 * values, -values * np.float32(1.1)):  # the last one is rounded
        merged = matrices(values, other).merged("nuslerp")["w"]
        np.testing.assert_allclose(merged, (values + other) / 2, rtol=0, atol=1e-6)


def test_sparse_vectors_stay_sparse() -> None:
    """The result lives on the union of the supports."""
    vectors = matrices(np.eye(9), np.eye(9)[::-1]).vectors
    delta = merge_vectors(vectors, method="nuslerp").parameters["w"]
    assert isinstance(delta, SparseDelta)
    assert delta.nnz == 17


def test_nuslerp_takes_two() -> None:
    """More or fewer vectors are refused."""
    with pytest.raises(InvalidLoadout, match="takes 2 vectors, not 3"):
        golden("nuslerp")
