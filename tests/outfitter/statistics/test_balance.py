"""Sample ratio mismatch: evidence with a mean of 1, over stretches with shares of their own."""

import math

import pytest

from outfitter.statistics.balance import Stretch, balance, log_e_value


def test_the_mean_of_the_evidence_is_one_where_units_are_dealt_as_planned() -> None:
    share, num_units, total = 0.3, 40, 0.0
    for treated in range(num_units + 1):
        chance = math.comb(num_units, treated) * share**treated * 0.7 ** (num_units - treated)
        counts = {"control": num_units - treated, "warm": treated}
        total += chance * math.exp(log_e_value(Stretch({"control": 0.7, "warm": share}, counts)))
    assert total == pytest.approx(1, abs=1e-9)


def test_a_leak_is_a_mismatch_and_chance_is_not() -> None:
    even = {"control": 0.5, "warm": 0.5}
    assert balance([Stretch(even, {"control": 1_000_000, "warm": 990_000})]).is_mismatch
    assert balance([Stretch(even, {"control": 300, "warm": 150})]).is_mismatch
    assert not balance([Stretch(even, {"control": 5_080, "warm": 4_950})]).is_mismatch
    assert not balance([]).is_mismatch


def test_each_stretch_is_judged_by_its_own_shares() -> None:
    """Weights that were changed are no mismatch."""
    first = Stretch({"control": 0.5, "warm": 0.5}, {"control": 5_000, "warm": 5_010})
    second = Stretch({"control": 0.9, "warm": 0.1}, {"control": 9_000, "warm": 1_000})
    found = balance([first, second])
    assert found.counts == {"control": 14_000, "warm": 6_010}
    assert found.expected == pytest.approx({"control": 14_005, "warm": 6_005})
    assert not found.is_mismatch
    assert found.p_value > 0.5


def test_units_of_a_variant_without_a_share_are_a_mismatch() -> None:
    stretch = Stretch({"control": 1.0, "warm": 0.0}, {"control": 100, "warm": 1})
    assert balance([stretch]).is_mismatch
    assert balance([stretch]).p_value == 0
