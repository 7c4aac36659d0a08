"""Model Stock against mergekit's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskvectors.errors import InvalidLoadout
from taskvectors.merge import merge_vectors
from taskvectors.vector import SparseDelta
from tests.taskvectors.merge import mergekit_oracle as mergekit
from tests.taskvectors.merge.drawing import Drawn, assert_close, drawn, matrices

ONES = (1.0,)


@settings(max_examples=100, deadline=None)
@given(drawn(count=(2, 4), weights=ONES), st.booleans())
def test_model_stock_is_mergekits(case: Drawn, filter_wise: bool) -> None:
    """One angle for a parameter or one for each row; a vector that lacks it counts as zero."""
    merged = case.merged("model_stock", filter_wise=filter_wise)
    for name in case.shapes:
        deltas = case.tensors(name)
        expected = mergekit.merged("model_stock", deltas, filter_wise=filter_wise)
        stacked = torch.stack(deltas)
        mean = stacked.mean(0)
        clear = mean.abs() > 1e-9
        shrink = float((expected[clear] / mean[clear]).abs().max()) if clear.any() else 0.0
        least = 0.1  # a cosine near 0 is a difference of rounded sums
        scale = max(shrink, least) * float(stacked.abs().max())
        assert_close(merged[name], expected, scale=scale)


@pytest.mark.parametrize("filter_wise", [False, True])
def test_tiny_vectors_are_as_in_mergekit(filter_wise: bool) -> None:
    """Products of norms are clipped at 1e-6, and so smaller vectors shrink more."""
    first, second = np.array([[3.0, 2.0]]) * 1e-4, np.array([[2.0, 5.0]]) * 1e-4
    case = matrices(first, second)
    expected = mergekit.merged("model_stock", case.tensors("w"), filter_wise=filter_wise)
    assert float(expected.abs().max()) < 0.6 * 3.5e-4  # 0.83 × the mean, if nothing were clipped
    np.testing.assert_allclose(
        case.merged("model_stock", filter_wise=filter_wise)["w"], expected, rtol=1e-5
    )


@settings(max_examples=40, deadline=None)
@given(drawn(count=(1, 1), weights=ONES), st.integers(2, 4), st.booleans())
def test_identical_vectors_are_the_vector(case: Drawn, number: int, filter_wise: bool) -> None:
    """The angle between copies is zero, and so nothing shrinks."""
    name = "layers.0.up.weight"
    copies = matrices(*[case.dense[0][name]] * number)
    merged = copies.merged("model_stock", filter_wise=filter_wise)["w"]
    assert_close(merged, case.dense[0][name], times=2)


def test_orthogonal_vectors_are_the_base() -> None:
    """At right angles nothing is common; opposed ones have no estimate: both are the base."""
    assert not merge_vectors(
        matrices(np.eye(2), np.eye(2)[::-1]).vectors, method="model_stock"
    ).parameters
    assert not matrices([1.0, 2.0], [-1.0, -2.0]).merged("model_stock")["w"].any()


@settings(max_examples=60, deadline=None)
@given(
    drawn(count=(2, 4), weights=ONES, tied=True),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_model_stock_does_not_see_the_order(case: Drawn, filter_wise: bool, random: object) -> None:
    """Any order of the vectors gives the same merge, but for rounding."""
    order = list(range(len(case.vectors)))
    random.shuffle(order)  # type: ignore[attr-defined]
    first = case.merged("model_stock", filter_wise=filter_wise)
    second = case.merged("model_stock", filter_wise=filter_wise, order=order)
    for name in case.shapes:
        assert_close(second[name], first[name], scale=1e-3)


def test_sparse_vectors_stay_sparse() -> None:
    """The result lives on the union of the supports."""
    first, second = np.eye(9), np.eye(9)
    first[0, 1], second[0, 2] = 3, 4
    delta = merge_vectors(matrices(first, second).vectors, method="model_stock").parameters["w"]
    assert isinstance(delta, SparseDelta)
    assert delta.nnz == 11


def test_model_stock_needs_two() -> None:
    """One vector has no angle."""
    with pytest.raises(InvalidLoadout, match="takes 2 or more vectors, not 1"):
        matrices([1.0]).merged("model_stock")
