"""Stretches of units that were dealt alike, from versions and their counts."""

from outfitter.control.experiments.allotment import deal
from outfitter.control.experiments.experiment import Experiment
from outfitter.control.experiments.hashing import bucket_of
from outfitter.experiments.analysis import dealt_shares, known_shares, stretches
from outfitter.statistics.balance import balance
from tests.outfitter.experiments.standings import definition


def test_what_was_dealt_are_the_buckets() -> None:
    """Of those that any variant has; the plan, before there are buckets."""
    wanted = definition(("warm", "dry"))
    draft = Experiment(wanted, "tone")
    assert dict(dealt_shares(draft)) == dict.fromkeys(("control", "warm", "dry"), 1 / 3)
    running = Experiment(wanted, "tone", allotment=deal(wanted.shares, 0.1))
    assert dict(dealt_shares(running)) == dict.fromkeys(("control", "warm", "dry"), 1 / 3)
    whole = Experiment(wanted, "tone", allotment=deal(wanted.shares, 1.0))
    assert dict(dealt_shares(whole)) == {"control": 0.3334, "warm": 0.3333, "dry": 0.3333}


def test_versions_that_dealt_alike_are_one_stretch() -> None:
    even, odd = (("a", 0.5), ("b", 0.5)), (("a", 0.2), ("b", 0.8))
    counts = {2: {"a": 5, "b": 6}, 3: {"a": 2, "b": 8}, 4: {"a": 1}}
    found = stretches({2: even, 3: odd, 4: even}, counts)
    assert [(one.shares["a"], one.counts) for one in found] == [
        (0.5, {"a": 6, "b": 6}),
        (0.2, {"a": 2, "b": 8}),
    ]


def test_versions_that_nobody_knows_are_no_mismatch() -> None:
    even = (("a", 0.5), ("b", 0.5))
    found = balance(stretches({9: even}, {1: {"a": 900, "b": 100}, 9: {"a": 50, "b": 50}}))
    assert found.counts == {"a": 950, "b": 150}
    assert not found.is_mismatch


def lived(*steps: tuple[float, float]) -> list[Experiment]:
    """Versions whose steps are the coverage and warm's share."""
    allotments = [None]
    for coverage, warm in steps:
        before = allotments[-1]
        allotments.append(deal({"control": 1 - warm, "warm": warm}, coverage, before))
    wanted = definition()
    made = enumerate(allotments[1:], 2)
    return [Experiment(wanted, "tone", number, allotment=one) for number, one in made]


def test_regulars_whose_weights_change_before_all_take_part_are_no_mismatch() -> None:
    """Who was there before comes new to the new buckets only, which are not dealt as all are."""
    versions = lived((0.2, 0.5), (0.2, 0.4), (1.0, 0.4))
    regulars = {f"user-{i}": bucket_of("tone", f"user-{i}") for i in range(20_000)}
    seen: set[str] = set()
    counts: dict[int, dict[str, int]] = {}
    for one in versions:
        assert one.allotment is not None
        own = counts.setdefault(one.version, {"control": 0, "warm": 0})
        for user, bucket in regulars.items():
            variant = one.allotment.variant_of(bucket)
            if variant is not None and user not in seen:
                seen.add(user)
                own[variant] += 1
    assert counts[3]["warm"] == 0 < counts[3]["control"]
    assert not balance(stretches(known_shares(versions), counts)).is_mismatch


def test_what_changes_all_buckets_alike_keeps_its_shares() -> None:
    """A ramp, weights while all take part, and the plan of a draft; by no more than a bucket."""
    ramp = lived((0.05, 0.3), (0.25, 0.3), (1.0, 0.3), (0.5, 0.3))
    whole = lived((1.0, 0.3), (1.0, 0.5), (1.0, 0.2), (0.5, 0.2))
    for versions in (ramp, [*reversed(ramp)], whole, [Experiment(definition(), "tone")]):
        assert known_shares(versions) == {one.version: dealt_shares(one) for one in versions}
    uneven = lived((0.1, 0.5), (0.2, 0.5), (0.2, 0.3), (0.4, 0.3))
    assert [*known_shares(uneven)] == [2, 3]
