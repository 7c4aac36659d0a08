"""Thompson sampling: traffic follows the chance to be best, in whole percents, never below 5."""

import pytest

from outfitter.statistics.contrast import Estimate
from outfitter.statistics.thompson import chances, weights

ARMS = {"control": Estimate(0.5, 1e-4, 2_500), "warm": Estimate(0.52, 1e-4, 2_500)}


def test_chances_are_those_of_normal_posteriors() -> None:
    found = chances(ARMS, is_better_up=True, seed=1)
    assert found["warm"] == pytest.approx(0.9214, abs=0.01)  # Φ(0.02 / √0.0002)
    assert sum(found.values()) == pytest.approx(1)


def test_the_same_seed_draws_the_same_and_less_may_be_better() -> None:
    down = chances(ARMS, is_better_up=False, seed=7)
    assert down == chances(ARMS, is_better_up=False, seed=7)
    assert down["control"] == pytest.approx(0.9214, abs=0.01)


def test_weights_are_whole_percents_with_a_floor() -> None:
    assert weights({"a": 1.0, "b": 0.0, "c": 0.0}) == {"a": 0.9, "b": 0.05, "c": 0.05}
    found = weights({"a": 0.333, "b": 0.333, "c": 0.334})
    assert sum(found.values()) == pytest.approx(1)
    assert sorted(found.values()) == [0.33, 0.33, 0.34]
