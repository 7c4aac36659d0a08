"""Buckets are dealt by shares, and no more of them move than must."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outfitter.control.experiments.allotment import Allotment, Segment, deal
from outfitter.control.experiments.hashing import NUM_BUCKETS

HALVES = {"a": 0.5, "b": 0.5}
KEYS = "abcdef"


def owners(allotment: Allotment) -> list[str | None]:
    return [variant for variant, _ in allotment.buckets]


def moved(before: Allotment, after: Allotment) -> int:
    """Buckets that went from one variant to another, or from nobody to one."""
    pairs = zip(owners(before), owners(after), strict=True)
    return sum(new is not None and new != old for old, new in pairs)


@st.composite
def shares(draw: st.DrawFn) -> dict[str, float]:
    keys = draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=6, unique=True))
    weights = [draw(st.floats(1e-6, 1e3)) for _ in keys]
    return {key: weight / sum(weights) for key, weight in zip(keys, weights, strict=True)}


def test_the_first_deal_is_growthbooks() -> None:
    """Each has a stretch by its share, and serves the first part of it."""
    found = deal({"a": 0.5, "b": 0.3, "c": 0.2}, 0.1)
    assert [(one.start, one.stop, one.variant) for one in found.segments] == [
        *[(0, 500, "a"), (500, 5000, None), (5000, 5300, "b"), (5300, 8000, None)],
        *[(8000, 8200, "c"), (8200, 10000, None)],
    ]
    assert found.segments[2].range == (0.5, 0.53)


def test_a_ramp_only_adds() -> None:
    """From 1 % to all, nobody's variant changes; the end is as if there had been no ramp."""
    allotment = deal(HALVES, 0.01)
    for coverage in (0.05, 0.2, 0.5, 1.0):
        grown = deal(HALVES, coverage, allotment)
        was = owners(allotment)
        assert all(old in (None, new) for old, new in zip(was, owners(grown), strict=True))
        allotment = grown
    assert owners(allotment) == owners(deal(HALVES, 1))


def test_a_lower_coverage_and_back_is_as_before() -> None:
    """Variants take back the buckets that they gave up."""
    first = deal(HALVES, 0.8)
    lower = deal(HALVES, 0.1, first)
    assert moved(first, lower) == 0
    assert owners(deal(HALVES, 0.8, lower)) == owners(first)


def test_a_stopped_variant_gets_its_own_back() -> None:
    """To nothing and back, whatever others took meanwhile of what nobody had."""
    first = deal(HALVES, 0.5)
    without = deal({"a": 1.0}, 0.25, first)
    assert without.counts == {"a": 2500}
    assert owners(deal(HALVES, 0.5, without)) == owners(first)


def test_growing_takes_what_nobody_had_before_what_others_had() -> None:
    """A unit that another variant has served says less."""
    first = deal(HALVES, 0.5)
    after = deal({"a": 0.2, "b": 0.8}, 0.5, first)
    assert after.counts == {"a": 1000, "b": 4000}
    pairs = zip(owners(first), owners(after), strict=True)
    assert not any((old, new) == ("a", "b") for old, new in pairs)


def test_a_new_variant_takes_from_all() -> None:
    """As many buckets move as it gets."""
    first = deal(HALVES, 1)
    after = deal({"a": 0.45, "b": 0.45, "c": 0.1}, 1, first)
    assert after.counts == {"a": 4500, "b": 4500, "c": 1000}
    assert moved(first, after) == 1000


def test_tiny_shares_get_a_bucket() -> None:
    """Whoever has a weight serves somebody; without one, nobody."""
    found = deal({"a": 1 - 2e-6, "b": 1e-6, "c": 1e-6, "d": 0.0}, 0.001)
    assert found.counts == {"a": 10, "b": 1, "c": 1}
    assert deal(HALVES, 0).counts == {}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(shares(), st.floats(0, 1)), min_size=1, max_size=5))
def test_whatever_changes_the_least_moves(changes: list[tuple[dict[str, float], float]]) -> None:
    """Counts are those of the shares, and the buckets that move those that variants grow by."""
    before: Allotment | None = None
    for mix, coverage in changes:
        after = deal(mix, coverage, before)
        assert after.segments[0].start == 0
        assert after.segments[-1].stop == NUM_BUCKETS
        assert all(a.stop == b.start for a, b in itertools.pairwise(after.segments))
        for key, share in mix.items():
            assert abs(after.counts.get(key, 0) - coverage * share * NUM_BUCKETS) <= len(mix) + 1
        if before is not None:
            grown = sum(max(0, n - before.counts.get(key, 0)) for key, n in after.counts.items())
            assert moved(before, after) == grown
        assert Allotment.from_json(after.to_json()) == after
        before = after


@pytest.mark.parametrize(("bucket", "variant"), [(0, "a"), (499, "a"), (500, None), (9999, None)])
def test_a_bucket_finds_its_variant(bucket: int, variant: str | None) -> None:
    """At the ends of segments, too."""
    found = Allotment((Segment(0, 500, "a"), Segment(500, NUM_BUCKETS)))
    assert found.variant_of(bucket) == variant
