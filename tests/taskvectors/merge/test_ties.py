"""TIES in mergekit's dialect, against mergekit."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.taskvectors.merge.drawing import Drawn, drawn, matrices
from tests.taskvectors.merge.oracles import assert_equal, assert_near, mergekit, stable_sorts

densities = st.integers(1, 100).map(lambda percent: percent / 100)
EQUAL = (1.0,)
POSITIVE = (1.0, 0.5, 0.25)


@settings(max_examples=100, deadline=None)
@given(drawn(count=(1, 6), tied=True), densities, st.booleans(), st.sampled_from((1.0, -0.5, 0.0)))
def test_ties_is_mergekits_where_magnitudes_repeat(
    case: Drawn, density: float, normalize: bool, scale: float
) -> None:
    """Equal magnitudes at the cut, zero sums, weights that cancel: equal but for the quotient."""
    parameters = {"density": density, "normalize": normalize, "lambda": scale}
    with stable_sorts():
        theirs = mergekit(case, "ties", **parameters)
    assert_equal(case.merged("ties", **parameters), theirs)


@settings(max_examples=100, deadline=None)
@given(drawn(count=(1, 6), tied=False), densities, st.booleans())
def test_ties_is_mergekits(case: Drawn, density: float, normalize: bool) -> None:
    """Normal values; equal, unequal, zero and negative weights."""
    parameters = {"density": density, "normalize": normalize}
    ours = case.merged("ties", **parameters)
    assert_near(case, ours, mergekit(case, "ties", **parameters), factor=16)


@settings(max_examples=60, deadline=None)
@given(drawn(count=(2, 6), tied=True), densities, st.randoms(use_true_random=False))
def test_ties_does_not_see_the_order(case: Drawn, density: float, random: object) -> None:
    """Any order of the vectors gives the same merge, where sums are exact."""
    order = list(range(len(case.vectors)))
    random.shuffle(order)  # type: ignore[attr-defined]
    one = case.merged("ties", density=density)
    assert_equal(one, case.merged("ties", density=density, order=order))


@settings(max_examples=60, deadline=None)
@given(drawn(count=(1, 6)), densities, st.sampled_from((2.0, 0.5, 16.0)))
def test_scaled_vectors_scale_the_merge(case: Drawn, density: float, scale: float) -> None:
    """A power of two before is a power of two after, to the bit."""
    scaled = Drawn([vector * scale for vector in case.vectors], case.weights, case.shapes)
    expected = {n: a * scale for n, a in case.merged("ties", density=density).items()}
    assert_equal(scaled.merged("ties", density=density), expected)


@settings(max_examples=60, deadline=None)
@given(drawn(count=(1, 1), weights=(1.0,)))
def test_one_vector_of_density_one_is_itself(case: Drawn) -> None:
    """Nothing is trimmed, nobody disagrees."""
    assert_near(case, case.merged("ties", density=1.0), case.dense[0])


def test_a_sparse_vector_is_not_trimmed_below_its_own_support() -> None:
    """Density counts all elements: of 100 with 10 changed, density 0.2 keeps the 10."""
    array = np.zeros((10, 10))
    array[3] = np.arange(1, 11)
    case = matrices(array)
    assert_equal(case.merged("ties", density=0.2), case.dense[0])
    assert np.count_nonzero(case.merged("ties", density=0.05)["w"]) == 5
    assert np.count_nonzero(case.merged("ties", density=1e-9)["w"]) == 1


def test_ties_by_hand() -> None:
    """Weights vote and divide; zero sums elect plus; agreeing weights that cancel divide by 1."""
    case = matrices([4.0, 1.0, -2.0, 3.0], [-1.0, -2.0, 2.0, -3.0], weights=[1.0, 0.5])
    merged = case.merged("ties", density=1.0)["w"]
    assert merged.tolist() == [4.0, 1.0, -2.0, 3.0]
    tied = matrices([2.0, 2.0], [-1.0, -4.0], weights=[2.0, 1.0])
    assert tied.merged("ties", density=1.0)["w"].tolist() == [2.0, 2.0]
    cancelling = matrices([2.0], [-1.0], weights=[1.0, -1.0])
    assert cancelling.merged("ties", density=1.0)["w"].tolist() == [3.0]
