"""Task arithmetic against mergekit and PEFT, and its algebra."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskvectors.merge import merge_vectors
from taskvectors.vector import DenseDelta, LowRankDelta, SparseDelta
from tests.taskvectors.merge.drawing import Drawn, drawn, vector_of
from tests.taskvectors.merge.oracles import assert_equal, assert_near, by_peft, mergekit

cases = drawn(count=(1, 6))
ODD = (0.3, 0.7, -1.1)


@settings(max_examples=150, deadline=None)
@given(drawn(count=(1, 6), tied=True))
def test_linear_is_task_arithmetic_to_the_bit(case: Drawn) -> None:
    """Where sums are exact, mergekit's and PEFT's results are ours, whatever the mix of kinds."""
    ours = case.merged("linear")
    assert_equal(ours, mergekit(case, "task_arithmetic"))
    assert_equal(ours, by_peft(case, "task_arithmetic"))


@settings(max_examples=100, deadline=None)
@given(drawn(count=(1, 6), weights=ODD))
def test_linear_is_task_arithmetic(case: Drawn) -> None:
    """Also for values and weights that float32 rounds."""
    assert_near(case, case.merged("linear"), mergekit(case, "task_arithmetic"), factor=4)


@settings(max_examples=60, deadline=None)
@given(drawn(count=(2, 6), tied=True), st.randoms(use_true_random=False))
def test_linear_does_not_see_the_order(case: Drawn, random: object) -> None:
    """Any order of the vectors gives the same merge, where sums are exact."""
    order = list(range(len(case.vectors)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert_equal(case.merged("linear"), case.merged("linear", order=order))


@settings(max_examples=60, deadline=None)
@given(cases)
def test_a_weight_and_its_negative_cancel(case: Drawn) -> None:
    """Vectors beside themselves with the opposite weights leave nothing, and no entry."""
    twice = Drawn(
        [vector for vector in case.vectors for _ in range(2)],
        [signed for weight in case.weights for signed in (weight, -weight)],
        case.shapes,
    )
    zeros = {name: np.zeros(shape, np.float32) for name, shape in case.shapes.items()}
    assert_near(case, twice.merged("linear"), zeros)


@settings(max_examples=60, deadline=None)
@given(drawn(count=(1, 1), weights=(1.0,)))
def test_one_vector_of_weight_one_is_itself(case: Drawn) -> None:
    """The same numbers, in the same form."""
    merged = merge_vectors(case.vectors, [1.0])
    for name, delta in case.vectors[0].parameters.items():
        assert type(merged.parameters[name]) is type(delta)
        np.testing.assert_array_equal(merged.parameters[name].to_dense(), delta.to_dense())


@settings(max_examples=60, deadline=None)
@given(drawn(count=(1, 6), tied=True), st.sampled_from((2.0, -0.5, 0.25)))
def test_scaled_weights_scale_the_sum(case: Drawn, scale: float) -> None:
    """`Σ (s wₖ) τₖ = s Σ wₖ τₖ`, exactly for powers of two."""
    scaled = Drawn(case.vectors, [weight * scale for weight in case.weights], case.shapes)
    expected = {name: array * scale for name, array in case.merged("linear").items()}
    assert_equal(scaled.merged("linear"), expected)


def test_forms_survive() -> None:
    """Sparse and sparse is sparse, low rank and low rank is low rank, a mixture is what is less."""
    index = np.arange(3, dtype=np.int64)
    ones = np.ones(3, np.float32)
    sparse = vector_of({"w": SparseDelta((9, 9), index, ones)})
    low = vector_of(
        {"w": LowRankDelta((9, 9), np.eye(1, 9, dtype=np.float32), np.ones((9, 1), "f4"))}
    )
    kinds = [
        type(merge_vectors(vectors, [1.0, 0.5]).parameters["w"])
        for vectors in ([sparse, sparse], [low, low], [sparse, low])
    ]
    assert kinds == [SparseDelta, LowRankDelta, SparseDelta]
    full = vector_of({"w": DenseDelta(np.ones((9, 9), np.float32))})
    assert isinstance(merge_vectors([sparse, full]).parameters["w"], DenseDelta)


@pytest.mark.parametrize(
    "method", ["linear", "ties", "ties_peft", "dare_linear", "breadcrumbs", "sce"]
)
def test_nothing_left_is_no_parameter(method: str) -> None:
    """Where everything cancels or is zero, the merge does not name the parameter."""
    zero = vector_of({"w": SparseDelta((4, 4), np.array([3]), np.zeros(1, np.float32))})
    empty = vector_of({"w": SparseDelta((4, 4), np.empty(0, np.int64), np.empty(0, np.float32))})
    assert not merge_vectors([zero, empty], None, method).parameters
