"""What may be done to an experiment, and when."""

from dataclasses import replace

import pytest

from outfitter.control.experiments.definition import Definition
from outfitter.control.experiments.experiment import Experiment, Pending, Pin
from outfitter.control.experiments.status import Status, after
from outfitter.control.experiments.steps import (
    advanced,
    paused,
    rolled_back,
    shipped,
    started,
    stopped,
)
from outfitter.errors import ApiError
from tests.outfitter.experiments.test_definition import WHOLE

PIN = Pin("base", "{}", None, "f")
DRAFT = Experiment(Definition.parse(WHOLE), "acme/tone")
RUNNING = replace(started(DRAFT, {"control": PIN}, 100).dealt(DRAFT), pending=Pending("ship", 9))
ALLOWED = {
    "draft": {"start"},
    "running": {"pause", "stop", "ship", "rollback"},
    "paused": {"start", "stop", "ship", "rollback"},
    "stopped": {"ship"},
    "rolled_back": set(),
    "shipped": set(),
}


@pytest.mark.parametrize("status", list(Status))
def test_what_may_be_done(status: Status) -> None:
    """Everything else is refused with what it could be done to."""
    for action in ("start", "pause", "stop", "ship", "rollback"):
        if action in ALLOWED[status]:
            assert after(status, action) is not status
        else:
            with pytest.raises(ApiError, match=f"cannot {action} an experiment that is {status}"):
                after(status, action)


def test_a_second_start_keeps_what_it_was() -> None:
    """What its variants were, and when it began."""
    again = started(paused(RUNNING), {"control": replace(PIN, model="other")}, 200)
    assert (again.pins, again.started, again.stepped) == ({"control": PIN}, 100, 100)


def test_whatever_ends_or_pauses_drops_what_waits() -> None:
    """An automatic act that was decided before is not done after."""
    for step in (paused, stopped, rolled_back, lambda one: shipped(one, "warm")):
        assert step(RUNNING).pending is None


def test_who_gets_what_when_it_does_not_run() -> None:
    """The control, and the winner once there is one."""
    assert rolled_back(RUNNING).fallback == "control"
    assert shipped(RUNNING, "warm").fallback == "warm"
    assert shipped(RUNNING, "warm").split.control == "warm"


def test_only_what_serves_is_shipped() -> None:
    """Neither a shadow nor a stranger."""
    for key in ("new", "nobody"):
        with pytest.raises(ApiError, match="control, warm"):
            shipped(RUNNING, key)


def test_a_step_of_the_ramp_deals_more_buckets() -> None:
    """And takes none from anybody."""
    next_ = advanced(RUNNING, 1, 300).dealt(RUNNING)
    assert (next_.step, next_.stepped, next_.coverage) == (1, 300, 0.8)
    assert RUNNING.allotment is not None
    assert next_.allotment is not None
    assert RUNNING.allotment.counts == {"control": 250, "warm": 250}
    assert next_.allotment.counts == {"control": 4000, "warm": 4000}
    pairs = zip(RUNNING.allotment.buckets, next_.allotment.buckets, strict=True)
    assert all(then[0] == before[0] for before, then in pairs if before[0])
    assert advanced(next_, 1, 400) is next_
