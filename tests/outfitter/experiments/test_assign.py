"""Units get their variants as GrowthBook's own SDK assigns them, in and out of every part."""

import dataclasses
from collections import Counter
from typing import Any

import pytest
from growthbook import GrowthBook

from outfitter.control.experiments.allotment import deal
from outfitter.control.experiments.assign import (
    MAX_UNIT,
    Assignment,
    Reason,
    Split,
    assign,
    kept_unit,
    mirrored,
)
from outfitter.control.experiments.growthbook import payload


@dataclasses.dataclass(frozen=True)
class Slice:
    name: str
    start: float
    end: float


HALVES = {"control": 0.5, "warm": 0.5}
THREE = {"cold": 0.2, "control": 0.3, "warm": 0.5}
FIRST = deal(THREE, 0.3)
CHANGED = deal({"cold": 0.6, "control": 0.3, "new": 0.1}, 0.7, FIRST)
SPLITS = {
    "halves": Split("tone", "control", deal(HALVES, 1)),
    "covered": Split("acme/tone", "control", deal(HALVES, 0.37)),
    "three": Split("three", "control", FIRST),
    "changed": Split("three", "control", CHANGED),
    "changed again": Split("three", "control", deal(THREE, 1, CHANGED)),
    "layer": Split("l", "control", deal(HALVES, 1), layer=Slice("chat", 0.25, 0.7)),
    "last layer": Split("l", "control", deal(HALVES, 1), layer=Slice("chat", 0.7, 1)),
    "holdout": Split("h", "control", deal(HALVES, 0.9), holdout=Slice("q4", 0, 0.05)),
    "middle": Split("h", "control", deal(THREE, 1), holdout=Slice("q4", 0.333, 0.667)),
    "both": Split("b", "control", FIRST, Slice("chat", 0, 0.5), Slice("q4", 0.9, 1)),
    "nobody": Split("n", "control", deal(HALVES, 1), holdout=Slice("q4", 0, 1)),
}
NUM_UNITS = 10_000
ODD_UNITS = ["é", "日本語", "🙂", " ", "0", "x" * 5000, "a\x00b", "\ud800"]


def theirs(split: Split, units: list[str], **more: Any) -> list[tuple[str, bool]]:
    """The variant of each unit, and whether it takes part, by the `growthbook` library."""
    values = {key: key for key in ("cold", "control", "new", "warm")}
    fields = payload("tone", split, values, "id", **more)
    sdk = GrowthBook(features=fields["features"])
    found = []
    for unit in units:
        sdk.set_attributes({"id": unit})
        result = sdk.eval_feature("tone")
        told = result.experimentResult
        takes_part = result.source == "experiment"
        assert not takes_part or told.key == result.value
        found.append((result.value, takes_part))
    return found


@pytest.mark.parametrize("name", SPLITS)
def test_growthbook_agrees(name: str) -> None:
    """For ten thousand units of every definition, among them odd ones."""
    split = SPLITS[name]
    units = [f"{name}-{number}" for number in range(NUM_UNITS)] + ODD_UNITS
    ours = [assign(split, unit) for unit in units]
    assert [(one.variant, one.is_counted) for one in ours] == theirs(split, units)


def test_growthbook_agrees_on_what_does_not_run() -> None:
    """Everybody gets the control, and so does whoever has no id."""
    split = SPLITS["halves"]
    assert theirs(split, ["x", "y"], is_running=False) == [("control", False)] * 2
    assert assign(split, "x", is_running=False) == Assignment("control", Reason.NOT_RUNNING)
    for unit in (None, ""):
        assert assign(split, unit) == Assignment("control", Reason.NO_UNIT)
    assert theirs(split, [""]) == [("control", False)]


def test_each_reason_is_told() -> None:
    """A holdout comes before a layer, and that before coverage."""
    counts = Counter(assign(SPLITS["both"], f"unit-{n}").reason for n in range(20_000))
    shares = {reason: round(count / 20_000, 2) for reason, count in counts.items()}
    assert shares[Reason.HOLDOUT] == pytest.approx(0.1, abs=0.01)
    assert shares[Reason.LAYER] == pytest.approx(0.9 * 0.5, abs=0.01)
    assert shares[Reason.COVERAGE] == pytest.approx(0.9 * 0.5 * 0.7, abs=0.01)
    assert shares[Reason.ASSIGNED] == pytest.approx(0.9 * 0.5 * 0.3, abs=0.01)


def test_a_unit_is_in_one_experiment_of_a_layer() -> None:
    """Two that share a layer have no unit in common, and leave none out."""
    lower = dataclasses.replace(SPLITS["halves"], seed="one", layer=Slice("chat", 0, 0.4))
    upper = dataclasses.replace(SPLITS["halves"], seed="two", layer=Slice("chat", 0.4, 1))
    for number in range(5000):
        pair = [assign(one, f"unit-{number}").is_counted for one in (lower, upper)]
        assert sum(pair) == 1


def test_a_share_of_requests_is_mirrored() -> None:
    """Each shadow by its own draw."""
    shares = {"a": 0.1, "b": 1.0, "c": 0.0}
    assert list(mirrored(shares, [0.05, 0.99, 0.0])) == ["a", "b"]
    assert list(mirrored(shares, [0.1, 0.0, 0.5])) == ["b"]


def test_a_unit_that_no_database_holds_is_kept_as_its_digest() -> None:
    """Too long, or with characters that are none; others stay as they are."""
    for unit in ("alice", "日本語", "x" * MAX_UNIT):
        assert kept_unit(unit) == unit
    kept = {kept_unit(unit) for unit in ("x" * (MAX_UNIT + 1), "a\x00b", "\ud800")}
    assert len(kept) == 3
    assert all(one.startswith("sha256:") and len(one) == 71 for one in kept)
