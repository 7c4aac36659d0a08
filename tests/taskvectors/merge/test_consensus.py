"""Consensus merging against FusionBench's masks."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskvectors.vector import SparseDelta
from tests.taskvectors.merge import fusion_bench_oracle as fusion_bench
from tests.taskvectors.merge.drawing import Drawn, digest_of, drawn, golden, matrices

LAMBDAS = (0.0, 0.25, 0.4, 0.5, 1.0, 3.0)


@settings(max_examples=150, deadline=None)
@given(drawn(tied=True), st.integers(0, 5), st.sampled_from(LAMBDAS), st.sampled_from((1, -0.5)))
def test_consensus_counts_fusion_benchs_masks(
    case: Drawn, agreement: int, mask_lambda: float, scale: float
) -> None:
    """The weighted sum where enough masks agree; equal to the bit, ties and cancellations too."""
    merged = case.merged(
        "consensus", agreement=agreement, mask_lambda=mask_lambda, **{"lambda": scale}
    )
    for name in case.shapes:
        deltas = torch.stack([tensor.flatten() for tensor in case.tensors(name, torch.float32)])
        summed = sum(weight * delta for weight, delta in zip(case.weights, deltas, strict=True))
        kept = fusion_bench.tall_masks(deltas, summed, mask_lambda).sum(0) >= agreement
        np.testing.assert_array_equal(merged[name].reshape(-1), summed * kept * scale)


@settings(max_examples=60, deadline=None)
@given(drawn(tied=True, weights=(1.0, 0.5, -2.0)), st.randoms(use_true_random=False))
def test_consensus_does_not_see_the_order(case: Drawn, random: object) -> None:
    """Any order of the vectors gives the same merge, where sums are exact."""
    order = list(range(len(case.vectors)))
    random.shuffle(order)  # type: ignore[attr-defined]
    first, second = case.merged("consensus"), case.merged("consensus", order=order)
    for name in case.shapes:
        np.testing.assert_array_equal(first[name], second[name])


@settings(max_examples=60, deadline=None)
@given(drawn())
def test_no_agreement_wanted_is_the_sum(case: Drawn) -> None:
    """With agreement 0 nothing is dropped; with more than there are vectors, everything."""
    everything, nothing = (
        case.merged("consensus", agreement=0),
        case.merged("consensus", agreement=9),
    )
    linear = case.merged("linear")
    for name in case.shapes:
        np.testing.assert_allclose(everything[name], linear[name], rtol=0, atol=3e-6)
        assert not nothing[name].any()


def test_consensus_drops_what_one_vector_wants() -> None:
    """Agreement 2 keeps common elements, drops selfish ones and those that cancel."""
    case = matrices([1.0, 1.0, 1.0], [1.0, 0.0, -1.0])
    assert case.merged("consensus", agreement=2)["w"].tolist() == [2.0, 0.0, 0.0]
    assert case.merged("consensus", agreement=1)["w"].tolist() == [2.0, 1.0, 0.0]


def test_consensus_of_sparse_vectors_is_sparse_and_golden() -> None:
    """The bytes of a merge never change, because loadouts are cached by digest."""
    delta = golden("consensus").parameters["w"]
    assert isinstance(delta, SparseDelta)
    assert digest_of(delta) == "af24e00e7a74735f"
