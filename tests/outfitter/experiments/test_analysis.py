"""Stretches of units that were dealt alike, from versions and their counts."""

from outfitter.control.experiments.allotment import deal
from outfitter.control.experiments.experiment import Experiment
from outfitter.experiments.analysis import dealt_shares, stretches
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
