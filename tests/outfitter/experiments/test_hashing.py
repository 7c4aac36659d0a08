"""Units stand where GrowthBook has them, evenly, and independently from seed to seed."""

import functools
import itertools

import numpy as np
import pytest
from growthbook.core import fnv1a32 as their_fnv1a32
from growthbook.core import gbhash
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from outfitter.control.experiments.hashing import NUM_BUCKETS, bucket_of, fnv1a32, is_within
from tests.outfitter.experiments.many import buckets_of

UNITS = np.array([b"user-%d" % number for number in range(1_000_000)])
SEEDS = ("tone", "acme/tone", "tone2", "layer:chat", "holdout:q4")
ALPHA = 1e-4
"""Of every test of chance here; what they see is the same at every run."""


@functools.cache
def places(seed: str) -> np.ndarray:
    return buckets_of(seed, UNITS)


@pytest.mark.parametrize(
    ("text", "value"), [("", 0x811C9DC5), ("a", 0xE40C292C), ("foobar", 0xBF9CF968)]
)
def test_known_hashes(text: str, value: int) -> None:
    """From the reference implementation of FNV (isthe.com/chongo/src/fnv/test_fnv.c)."""
    assert fnv1a32(text) == value


@given(st.text(st.characters(categories=None), max_size=40), st.text(max_size=40))
def test_any_text_is_hashed_as_growthbook_does(seed: str, value: str) -> None:
    """Also outside of ASCII, beyond 16 bits, and half of a surrogate pair."""
    assert fnv1a32(seed) == their_fnv1a32(seed)
    assert bucket_of(seed, value) / NUM_BUCKETS == gbhash(seed, value, 2)


def test_the_vectorised_hash_is_the_scalar_one() -> None:
    """For units of one digit to seven."""
    some = np.concatenate([UNITS[:2000], UNITS[-2000:]])
    for seed in SEEDS:
        theirs = [bucket_of(seed, unit.decode()) for unit in some]
        assert buckets_of(seed, some).tolist() == theirs


def test_a_range_ends_before_its_end() -> None:
    """And begins at its start."""
    assert [is_within(bucket, 0.1, 0.2) for bucket in (999, 1000, 1999, 2000)] == [
        *(False, True, True, False),
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_million_units_are_spread_evenly(seed: str) -> None:
    """Chi-square over the 10,000 buckets."""
    counts = np.bincount(places(seed), minlength=NUM_BUCKETS)
    assert stats.chisquare(counts).pvalue > ALPHA


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(SEEDS, 2)))
def test_two_experiments_are_independent(one: str, other: str) -> None:
    """Chi-square of the 100 × 100 table of their hundredths, over a million units."""
    pairs = places(one) // 100 * 100 + places(other) // 100
    table = np.bincount(pairs, minlength=NUM_BUCKETS).reshape(100, 100)
    assert stats.chi2_contingency(table).pvalue > ALPHA
