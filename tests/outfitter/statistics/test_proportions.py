"""Evidence about proportions: exact, by enumeration, and intervals that agree with it."""

import itertools
import math

import numpy as np
import pytest

from outfitter.statistics.proportions import (
    Counts,
    arm_interval,
    arms_interval,
    interval,
    log_e_value,
)


def _mean_capital(p: float, effect: float, factor: float, share: float, num_units: int) -> float:
    """Of all ways in which units can be dealt and succeed where q = factor·p + effect."""
    q, total = factor * p + effect, 0.0
    for treated in range(num_units + 1):
        controls = num_units - treated
        dealt = math.comb(num_units, treated) * share**treated * (1 - share) ** controls
        for a, b in itertools.product(range(controls + 1), range(treated + 1)):
            chance = math.comb(controls, a) * p**a * (1 - p) ** (controls - a)
            chance *= math.comb(treated, b) * q**b * (1 - q) ** (treated - b)
            counts = Counts(a, controls), Counts(b, treated)
            total += dealt * chance * math.exp(log_e_value(*counts, share, effect, factor))
    return total


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.93])
@pytest.mark.parametrize(("effect", "factor"), [(0.0, 1.0), (0.05, 1.0), (0.0, 1.07), (0.02, 0.8)])
@pytest.mark.parametrize("share", [0.5, 0.1])
def test_the_mean_of_the_evidence_is_one_wherever_the_null_is_true(
    p: float, effect: float, factor: float, share: float
) -> None:
    """No sample is too small: of every null, and for every true proportion, exactly 1."""
    assert _mean_capital(p, effect, factor, share, 6) == pytest.approx(1, abs=1e-6)


def test_values_between_say_no_more_than_they_should() -> None:
    """Units of which only shares are known have evidence below that of their own bets."""
    generator = np.random.default_rng(3)
    logs = []
    for _ in range(2_000):
        values = generator.beta(0.5, 1, 200)
        treated = generator.random(200) < 0.5
        a, b = values[~treated], values[treated]
        counts = Counts(float(a.sum()), len(a)), Counts(float(b.sum()), len(b))
        logs.append(float(log_e_value(*counts, 0.5)))
    assert np.exp(logs).mean() < 1


def test_the_interval_is_what_the_evidence_does_not_refute() -> None:
    control, variant = Counts(210, 1_000), Counts(290, 1_100)
    lower, upper = interval(control, variant, 0.5, 0.05)
    assert lower < 290 / 1_100 - 0.21 < upper
    for end in (lower, upper):
        assert log_e_value(control, variant, 0.5, end) == pytest.approx(math.log(20), abs=0.02)
    inside, outside = 0.99 * lower + 0.01 * upper, 1.01 * lower - 0.01 * upper
    assert log_e_value(control, variant, 0.5, inside) < math.log(20)
    assert log_e_value(control, variant, 0.5, outside) > math.log(20)


@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (0, 1, 0, 1), (5, 5, 0, 5), (0, 400, 400, 400)])
def test_extreme_counts_have_intervals_that_hold_what_was_seen(
    counts: tuple[int, int, int, int],
) -> None:
    control, variant = Counts(*counts[:2]), Counts(*counts[2:])
    lower, upper = interval(control, variant, 0.5, 0.05)
    assert -1 <= lower <= variant.share - control.share <= upper <= 1
    if sum(counts) < 3:
        assert lower < -0.99
        assert upper > 0.99
    if counts[1] == 400:
        assert lower > 0.9


def test_what_is_swapped_is_mirrored() -> None:
    one = interval(Counts(30, 200), Counts(60, 210), 0.5, 0.05)
    other = interval(Counts(60, 210), Counts(30, 200), 0.5, 0.05)
    assert one[0] == pytest.approx(-other[1], abs=1e-4)
    assert one[1] == pytest.approx(-other[0], abs=1e-4)


def test_an_arm_by_itself_has_a_wider_interval() -> None:
    """A proportion of its own, and two of them against each other."""
    lower, upper = arm_interval(Counts(210, 1_000), 0.05)
    assert 0.15 < lower < 0.21 < upper < 0.27
    control, variant = Counts(210, 1_000), Counts(290, 1_100)
    alone, together = arms_interval(control, variant, 0.05), interval(control, variant, 0.5, 0.05)
    assert alone[0] < together[0] < together[1] < alone[1]


def test_the_capital_of_one_arm_has_the_mean_one() -> None:
    """Its interval misses the truth by chance only: by enumeration, not more often than alpha."""
    for p in (0.02, 0.4):
        missed = 0.0
        for successes in range(61):
            chance = math.comb(60, successes) * p**successes * (1 - p) ** (60 - successes)
            lower, upper = arm_interval(Counts(successes, 60), 0.05)
            missed += chance * (not lower <= p <= upper)
        assert missed <= 0.05
