"""Races and intervals."""

import numpy as np
import pytest

from outfitter.tuning.intervals import difference, mean_of
from outfitter.tuning.race import estimate, is_behind, leader, rungs


@pytest.mark.parametrize(
    ("num_prompts", "looks"), [(48, (12, 24)), (4, (4,)), (10, (4, 5)), (1, (1,))]
)
def test_looks_are_at_a_quarter_and_at_half(num_prompts: int, looks: tuple[int, ...]) -> None:
    """Never fewer than four prompts, where there are so many; without a race at the end."""
    assert rungs(num_prompts) == looks
    assert rungs(num_prompts, is_raced=False) == (num_prompts,)


def test_who_is_clearly_worse_is_dropped() -> None:
    """And who is as good, a little worse or better is not."""
    best = [1.0, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1]
    assert is_behind([0.0] * 12, best)
    assert not is_behind(best, best)
    assert not is_behind([0.0, *best[1:]], best)
    assert not is_behind([1.0] * 12, best)
    assert not is_behind([], best)
    assert not is_behind([0.0], best)


def test_as_good_ones_are_dropped_by_one_look_in_ten() -> None:
    """Of pairs with the same pass rate."""
    rng = np.random.default_rng(3)
    draws = (rng.uniform(size=(2000, 2, 40)) < 0.6).astype(float).tolist()
    dropped = sum(is_behind(one, other) for one, other in draws)
    assert dropped / 2000 == pytest.approx(0.1, abs=0.02)


def test_an_estimate_cancels_easy_prompts() -> None:
    """Who was asked the easy half only is not better for it."""
    reference = [1.0, 1, 1, 1, 0, 0, 0, 0]
    assert estimate([1.0, 1, 1, 1], reference) == 0.5
    assert estimate([1.0, 1, 0, 0], reference) == 0.0
    assert estimate([0.0] * 8, reference) == 0


def test_the_leader_was_asked_most() -> None:
    """A lucky start leads nobody."""
    assert leader([[1.0], [0.0, 1.0], [1.0, 1.0]]) == 2
    assert leader([[1.0, 0.0], [0.0, 1.0]]) == 0


def test_a_paired_interval_is_narrower_than_two_apart() -> None:
    """Pairing takes out what prompts have in common."""
    rng = np.random.default_rng(1)
    common = rng.uniform(size=100)
    ours, theirs = common + 0.1, common + rng.normal(0, 0.01, 100)
    found = difference(ours.tolist(), theirs.tolist(), 0)
    assert found.low < 0.1 < found.high
    assert found.high - found.low < 0.01


def test_the_paired_bootstrap_covers() -> None:
    """The true difference lies within 95 % intervals about so often."""
    rng = np.random.default_rng(2)
    hits = 0
    for trial in range(100):
        ours, theirs = (rng.uniform(size=(2, 80)) < [[0.7], [0.5]]).astype(float).tolist()
        found = difference(ours, theirs, trial)
        hits += found.low <= 0.2 <= found.high
    assert 0.89 <= hits / 100 <= 1.0


def test_wilsons_interval_is_scipys() -> None:
    """For scores of 0 and 1; others are bootstrapped."""
    stats = pytest.importorskip("scipy.stats")
    for passed in range(21):
        found = mean_of([1.0] * passed + [0.0] * (20 - passed), 0)
        wanted = stats.binomtest(passed, 20).proportion_ci(0.95, "wilson")
        assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-6)
    spread = mean_of([0.5, 0.25, 0.75, 0.5], 0)
    assert 0.25 <= spread.low < 0.5 < spread.high <= 0.75
