"""Acts: which one the figures call for, what it makes of an experiment, and vetoes."""

from dataclasses import replace
from typing import Any

import pytest

from outfitter.control.experiments import acts
from outfitter.control.experiments.acts import Act, Move, next_move, wanted
from outfitter.control.experiments.decide import findings
from outfitter.control.experiments.definition import Definition
from outfitter.control.experiments.experiment import Experiment
from outfitter.control.experiments.status import Status
from tests.outfitter.experiments.standings import NOW, definition, reported

EVEN = {"control": 2_000, "warm": 2_000}
SAME = {"control": 0.6, "warm": 0.6}
SLOW = {"control": 1.0, "warm": 1.3}
BETTER = {"control": 0.6, "warm": 0.75}
RAMP = [{"coverage": 0.1, "min_units": 100}, {"coverage": 1}]


def running(wanted: Definition, **fields: Any) -> Experiment:
    return Experiment(wanted, "tone", 3, Status.RUNNING, started=1, stepped=1, **fields)


def act_of(experiment: Experiment, *args: Any, **more: Any) -> Act | None:
    found = reported(experiment.definition, *args, step=experiment.step, **more)
    return wanted(experiment, found, findings(found))


def test_a_breach_rolls_back() -> None:
    """With the figures that caused it, to the control, for good."""
    experiment = running(definition())
    act = act_of(experiment, EVEN, SAME, SLOW)
    assert act is not None
    assert (act.kind, act.key) == ("rollback", "rollback:warm")
    assert act.cause["finding"]["figures"]["state"] == "breached"
    assert acts.applied(experiment, act, 5).status is Status.ROLLED_BACK


def test_one_of_several_variants_loses_its_traffic() -> None:
    """The others go on, in the shares that they had to each other."""
    experiment = running(definition(("warm", "dry")))
    units, slow = {**EVEN, "dry": 2_000}, {**SLOW, "dry": 1.0}
    act = act_of(experiment, units, {**SAME, "dry": 0.6}, slow)
    assert act is not None
    assert act.key == "drop:warm"
    then = acts.applied(experiment, act, 5)
    assert then.is_running
    assert then.definition.shares == {"control": 0.5, "warm": 0.0, "dry": 0.5}
    assert act_of(then, units, {**SAME, "dry": 0.6}, slow) is None
    worse = act_of(then, units, {**SAME, "dry": 0.6}, {**slow, "dry": 1.3})
    assert worse is not None
    assert worse.key == "rollback:dry"


def test_a_passed_step_leads_to_the_next() -> None:
    experiment = running(definition(ramp=RAMP))
    act = act_of(experiment, EVEN, SAME, stepped=0.0, step_units=100)
    assert act is not None
    assert act.key == "ramp:1"
    then = acts.applied(experiment, act, 77)
    assert (then.step, then.stepped, then.coverage) == (1, 77, 1.0)


def test_no_step_follows_while_a_guardrail_is_breached() -> None:
    """Also where nothing is rolled back by itself: more units would meet what is worse."""
    forbidden = running(definition(ramp=RAMP), forbidden=("rollback",))
    for experiment in (running(definition(ramp=RAMP, automatic={"rollback": False})), forbidden):
        assert act_of(experiment, EVEN, SAME, SLOW, stepped=0.0, step_units=100) is None


def test_a_winner_is_shipped_at_the_end_of_the_ramp() -> None:
    automatic = {"ship": "save", "ship_as": "acme/bot"}
    experiment = running(definition(automatic=automatic, ramp=RAMP))
    early = act_of(experiment, EVEN, BETTER, stepped=0.0, step_units=99)
    assert early is None
    act = act_of(replace(experiment, step=1), EVEN, BETTER, stepped=0.0)
    assert act is not None
    assert act.key == "ship:warm"
    assert act_of(running(definition()), EVEN, BETTER) is None


@pytest.mark.parametrize("status", [Status.PAUSED, Status.STOPPED, Status.SHIPPED])
def test_nothing_happens_to_what_does_not_run(status: Status) -> None:
    experiment = replace(running(definition()), status=status)
    assert act_of(experiment, EVEN, SAME, SLOW) is None


def test_nothing_is_built_on_a_mismatch_but_a_breach_still_rolls_back() -> None:
    automatic = {"ship": "save", "ship_as": "acme/bot"}
    experiment = running(definition(automatic=automatic))
    units = {"control": 2_000, "warm": 1_500}
    assert act_of(experiment, units, BETTER) is None
    act = act_of(experiment, units, SAME, SLOW)
    assert act is not None
    assert act.kind == "rollback"


def test_what_the_definition_turns_off_does_not_happen() -> None:
    automatic = {"rollback": False, "ramp": False}
    experiment = running(definition(automatic=automatic, ramp=RAMP))
    assert act_of(experiment, EVEN, SAME, SLOW) is None
    assert act_of(experiment, EVEN, SAME, stepped=0.0, step_units=100) is None


@pytest.mark.parametrize("act", ["rollback", "rollback:warm"])
def test_a_veto_stands_until_it_is_lifted(act: str) -> None:
    """Against all acts of a kind, or against one."""
    experiment = acts.vetoed(running(definition()), act)
    assert act_of(experiment, EVEN, SAME, SLOW) is None
    assert act_of(acts.allowed(experiment, act), EVEN, SAME, SLOW) is not None
    other = acts.vetoed(running(definition()), "rollback:dry")
    assert act_of(other, EVEN, SAME, SLOW) is not None


def test_an_act_waits_for_a_veto_and_comes_then() -> None:
    experiment = running(definition(automatic={"veto_s": 60}))
    act = act_of(experiment, EVEN, SAME, SLOW)
    assert act is not None
    assert next_move(experiment, act, NOW) is Move.PROPOSE
    waiting = acts.proposed(experiment, act, NOW)
    assert waiting.pending is not None
    assert waiting.pending.due == NOW + 60
    assert next_move(waiting, act, NOW + 59) is Move.WAIT
    assert next_move(waiting, act, NOW + 60) is Move.APPLY
    assert acts.applied(waiting, act, 5).pending is None
    assert acts.vetoed(waiting, "rollback:warm").pending is None
    assert acts.vetoed(waiting, "rollback").pending is None
    assert acts.vetoed(waiting, "ramp").pending == waiting.pending


def test_an_act_that_is_not_called_for_any_more_is_withdrawn() -> None:
    """And what is more urgent takes its place."""
    experiment = running(definition(automatic={"veto_s": 60}))
    act = act_of(experiment, EVEN, SAME, SLOW)
    assert act is not None
    waiting = acts.proposed(experiment, Act("ramp", "because", step=1), NOW)
    assert next_move(waiting, None, NOW + 90) is Move.WITHDRAW
    assert acts.withdrawn(waiting).pending is None
    assert next_move(waiting, act, NOW + 90) is Move.PROPOSE


def test_without_a_time_for_vetoes_acts_come_at_once() -> None:
    experiment = running(definition())
    act = act_of(experiment, EVEN, SAME, SLOW)
    assert next_move(experiment, act, NOW) is Move.APPLY
    assert next_move(experiment, None, NOW) is Move.WAIT


def test_traffic_follows_the_results_with_thompson_sampling() -> None:
    """Not before ten minutes, not for little, and never below 5 %."""
    experiment = running(definition(allocation="thompson"))
    slightly = {"control": 0.6, "warm": 0.62}
    act = act_of(experiment, EVEN, slightly)
    assert act is not None
    assert act.kind == "weights"
    assert act.weights["warm"] > 0.8
    assert act.weights["control"] >= 0.05
    then = acts.applied(experiment, act, 5)
    assert then.definition.shares == pytest.approx(act.weights)
    assert act_of(experiment, EVEN, SAME) is None
    assert act_of(experiment, EVEN, slightly, now=500.0) is None
