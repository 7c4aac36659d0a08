"""Asymptotic sequences: evidence and interval are two sides of one thing, tuned as it is said."""

import math

import pytest

from outfitter.statistics import asymptotic
from outfitter.statistics.asymptotic import TUNING_UNITS, log_e_value, z_of


@pytest.mark.parametrize("n", [200, 5_000, 1_000_000])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_the_evidence_reaches_one_over_alpha_at_the_ends_of_the_interval(
    n: int, alpha: float
) -> None:
    assert log_e_value(z_of(n, alpha), n, alpha) == pytest.approx(math.log(1 / alpha))


def test_the_interval_is_tightest_at_the_tuning_parameter() -> None:
    """No other ρ has a narrower one there, and elsewhere it is as much wider as is said."""
    here = z_of(TUNING_UNITS, 0.05)
    for other in (TUNING_UNITS / 2, TUNING_UNITS * 2):
        assert z_of(TUNING_UNITS, 0.05, other) > here
    for n, more in [(2_500, 1.02), (12_500, 1.02), (1_000, 1.11), (50_000, 1.07), (500_000, 1.17)]:
        assert z_of(n, 0.05) / z_of(n, 0.05, n) == pytest.approx(more, abs=0.006)


def test_it_is_wider_than_an_interval_for_one_look() -> None:
    assert all(z_of(n, 0.05) > 1.96 for n in (100, 5_000, 10**7))
    assert asymptotic.MIN_UNITS == 100
