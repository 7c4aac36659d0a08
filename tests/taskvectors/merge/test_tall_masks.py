"""TALL masks against FusionBench's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskvectors.errors import InvalidLoadout
from taskvectors.merge import MemorySource, MergedVector, merge_vectors
from taskvectors.methods import find_method
from taskvectors.selection import Selection
from taskvectors.vector import SparseDelta
from tests.taskvectors.merge import fusion_bench_oracle as fusion_bench
from tests.taskvectors.merge.drawing import (
    Drawn,
    assert_close,
    digest_of,
    drawn,
    golden,
    matrices,
)

LAMBDAS = (0.0, 0.25, 0.4, 0.5, 1.0, 3.0)


@settings(max_examples=150, deadline=None)
@given(drawn(tied=True), st.integers(0, 3), st.sampled_from(LAMBDAS), st.sampled_from((1, -0.5)))
def test_tall_masks_are_fusion_benchs(
    case: Drawn, task: int, mask_lambda: float, scale: float
) -> None:
    """The weighted sum where the vector's mask is; equal to the bit, ties included."""
    task %= len(case.vectors)
    merged = case.merged("tall_masks", task=str(task), mask_lambda=mask_lambda, **{"lambda": scale})
    for name in case.shapes:
        deltas = torch.stack([tensor.flatten() for tensor in case.tensors(name, torch.float32)])
        summed = sum(weight * delta for weight, delta in zip(case.weights, deltas, strict=True))
        mask = fusion_bench.tall_masks(deltas, summed, mask_lambda)[task]
        np.testing.assert_array_equal(merged[name].reshape(-1), summed * mask * scale)


@settings(max_examples=60, deadline=None)
@given(drawn(tied=False), st.sampled_from(LAMBDAS))
def test_masks_of_any_values_are_fusion_benchs(case: Drawn, mask_lambda: float) -> None:
    """With values that round the masks may differ only where both sides are almost equal."""
    merged = case.merged("tall_masks", task="0", mask_lambda=mask_lambda)
    for name in case.shapes:
        deltas = torch.stack(case.tensors(name))
        weights = torch.tensor(case.weights, dtype=torch.float64)
        summed = torch.tensordot(weights, deltas, 1)
        margin = deltas[0].abs() - (summed - deltas[0]).abs() * mask_lambda
        clear = (margin.abs() > 1e-4) | (summed.abs() < 1e-9)
        expected = summed * (margin > 0)
        assert_close(merged[name] * clear.numpy(), expected * clear, times=4, scale=1)


def test_one_vector_sees_itself_whole() -> None:
    """Alone, with λ below infinity, a vector's mask is its support."""
    case = matrices([1.0, -2.0, 0.0])
    assert case.merged("tall_masks", task="0")["w"].tolist() == [1.0, -2.0, 0.0]


def test_tall_masks_need_a_task() -> None:
    """Without a task, or with one that is not there, nothing can be masked."""
    case = matrices([1.0], [2.0])
    with pytest.raises(InvalidLoadout, match="task must be the name of one of the vectors"):
        case.merged("tall_masks")
    with pytest.raises(InvalidLoadout, match="task must be one of the loadout's vectors, not '2'"):
        case.merged("tall_masks", task="2")


def test_a_vector_in_two_selections_has_one_mask() -> None:
    """The same digest twice, each for other layers: the mask is that of both entries."""
    vectors = matrices([[1.0, 0.0]], [[0.0, 5.0]]).vectors
    sources = [MemorySource(key, vectors[i]) for key, i in (("a", 0), ("a", 0), ("b", 1))]
    here, elsewhere = Selection(), Selection(modules=(("nowhere", 1.0),))
    parameters = dict(find_method("tall_masks").parse({"task": "a"}))
    for selections in ([here, elsewhere, here], [elsewhere, here, here]):
        merged = MergedVector(sources, [1.0] * 3, "tall_masks", parameters, selections=selections)
        delta = merged.delta("w")
        assert delta is not None
        assert delta.to_dense().tolist() == [[1.0, 0.0]]


def test_tall_masks_are_golden() -> None:
    """The bytes of a merge never change, because loadouts are cached by digest."""
    delta = golden("tall_masks", task="1").parameters["w"]
    assert isinstance(delta, SparseDelta)
    assert digest_of(delta) == "2443f2a57794cb86"


def test_what_no_mask_keeps_is_left_out() -> None:
    """A parameter of which nothing is left is not in the merge."""
    case = matrices([1.0, 1.0], [-1.0, -1.0])
    assert merge_vectors(case.vectors, method="tall_masks", task="0").parameters == {}
