"""TIES in PEFT's dialect, against PEFT."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.taskvectors.merge.drawing import Dense, Drawn, drawn, matrices
from tests.taskvectors.merge.oracles import assert_equal, assert_near, by_peft, stable_sorts

densities = st.integers(1, 100).map(lambda percent: percent / 100)
elections = st.sampled_from(("total", "frequency"))


def theirs(case: Drawn, density: float, election: str) -> Dense:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that density 1 prunes nothing
        return by_peft(case, "ties", density, election)


@settings(max_examples=100, deadline=None)
@given(drawn(count=(1, 6), tied=True), densities, elections)
def test_ties_peft_is_pefts_where_magnitudes_repeat(
    case: Drawn, density: float, election: str
) -> None:
    """Equal magnitudes at the cut, zero sums, weights of 0 that vote: equal to the bit."""
    with stable_sorts():
        expected = theirs(case, density, election)
    assert_equal(case.merged("ties_peft", density=density, majority_sign=election), expected)


@settings(max_examples=100, deadline=None)
@given(drawn(count=(1, 6), tied=False), densities, elections)
def test_ties_peft_is_pefts(case: Drawn, density: float, election: str) -> None:
    """Normal values; equal, unequal, zero and negative weights."""
    ours = case.merged("ties_peft", density=density, majority_sign=election)
    assert_near(case, ours, theirs(case, density, election), factor=4)


@settings(max_examples=60, deadline=None)
@given(drawn(count=(1, 6), weights=(1.0,), tied=True))
def test_equal_weights_are_mergekits_ties(case: Drawn) -> None:
    """With weights of 1 and nothing trimmed the two dialects are one."""
    assert_equal(case.merged("ties_peft", density=1.0), case.merged("ties", density=1.0))


def test_ties_peft_by_hand() -> None:
    """Elects without weights, divides by the count; may keep nothing of a small parameter."""
    case = matrices([4.0, 1.0], [-1.0, -2.0], weights=[0.5, 1.0])
    assert case.merged("ties_peft", density=1.0)["w"].tolist() == [2.0, -2.0]
    assert case.merged("ties_peft", density=0.4)["w"].tolist() == [0.0, 0.0]
    negative = matrices([4.0], [2.0], weights=[1.0, -1.0])
    assert negative.merged("ties_peft", density=1.0)["w"].tolist() == [1.0]


@pytest.mark.parametrize(("election", "expected"), [("total", 3.0), ("frequency", -1.0)])
def test_elections_by_sum_or_by_count(election: str, expected: float) -> None:
    """One large plus against two small minus."""
    case = matrices([3.0], [-1.0], [-1.0])
    merged = case.merged("ties_peft", density=1.0, majority_sign=election)
    assert merged["w"].tolist() == [expected]
