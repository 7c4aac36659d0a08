"""Verdicts: each with the figures that say so, in the order in which they count."""

import json

import pytest

from outfitter.control.experiments import decide, told
from outfitter.control.experiments.decide import findings, verdict
from outfitter.control.experiments.report import report
from outfitter.statistics.balance import Stretch
from outfitter.statistics.moments import Moments
from tests.outfitter.experiments.standings import NOW, definition, reported, share, standing

EVEN = {"control": 2_000, "warm": 2_000}
SAME = {"control": 0.6, "warm": 0.6}


def test_without_units_there_is_nothing_yet() -> None:
    for units in ({}, {"control": 10, "warm": 0}, {"warm": 10}):
        found = verdict(reported(definition(), units, SAME))
        assert found.kind == decide.NOTHING_YET


def test_what_is_not_known_needs_more_units() -> None:
    """It says how many, by the spread of now."""
    found = verdict(reported(definition(), EVEN, {"control": 0.6, "warm": 0.62}))
    assert found.kind == decide.KEEP_COLLECTING
    assert found.figures["min_effect"] == 0.05
    assert 3_000 < found.figures["units_needed"] < 20_000
    assert "warm differs on helpful by 0.02" in found.reason


def test_a_surely_better_variant_wins() -> None:
    found = verdict(reported(definition(), EVEN, {"control": 0.6, "warm": 0.7}))
    assert (found.kind, found.variant, found.metric) == (decide.WINNER, "warm", "helpful")
    figures = found.figures
    assert figures["effect"] == pytest.approx(0.1)
    assert 0 < figures["lower"] < 0.1 < figures["upper"]
    assert figures["p_value"] < figures["alpha"] == 0.05
    assert figures["method"] == "exact"


def test_less_is_better_where_the_definition_says_so() -> None:
    metrics = [{"name": "helpful", "kind": "proportion", "direction": "down"}]
    wanted = definition(metrics=metrics)
    found = verdict(reported(wanted, EVEN, {"control": 0.7, "warm": 0.6}))
    assert (found.kind, found.variant) == (decide.WINNER, "warm")


def test_the_best_of_several_wins_by_a_stricter_bar() -> None:
    """alpha is divided by the variants that are compared."""
    wanted = definition(("warm", "dry", "odd"))
    units = dict.fromkeys(("control", "warm", "dry", "odd"), 2_000)
    shares = {"control": 0.6, "warm": 0.7, "dry": 0.72, "odd": 0.6}
    found = verdict(reported(wanted, units, shares))
    assert (found.kind, found.variant) == (decide.WINNER, "dry")
    assert found.figures["alpha"] == pytest.approx(0.05 / 3)


def test_an_effect_that_is_surely_small_is_no_difference() -> None:
    units = {"control": 20_000, "warm": 20_000}
    found = verdict(reported(definition(), units, SAME))
    assert found.kind == decide.NO_DIFFERENCE
    compared = found.figures["comparisons"][0]
    assert -0.05 < compared["lower"] < 0 < compared["upper"] < 0.05
    unsure = definition(metrics=[{"name": "helpful", "kind": "proportion"}])
    assert verdict(reported(unsure, units, SAME)).kind == decide.KEEP_COLLECTING


def test_a_guardrail_is_breached_beyond_its_margin_only() -> None:
    """20 % slower with a margin of 10 % is a breach; 8 % slower surely is none."""
    slow = reported(definition(), EVEN, SAME, {"control": 1.0, "warm": 1.2})
    found = verdict(slow)
    assert (found.kind, found.variant) == (decide.GUARDRAIL_BREACHED, "warm")
    assert found.metric == "latency_s"
    assert found.figures["factor"] == pytest.approx(1.1)
    assert found.figures["alpha"] == pytest.approx(0.05 / 2)  # the primary metric guards, too
    assert found.figures["state"] == "breached"
    within = reported(definition(), EVEN, SAME, {"control": 1.0, "warm": 1.05})
    states = {rail.guardrail.metric: rail.state for rail in within.rails}
    assert states == {"latency_s": "safe", "helpful": "open"}


def test_a_surely_worse_primary_metric_is_a_breach() -> None:
    found = verdict(reported(definition(), EVEN, {"control": 0.6, "warm": 0.5}))
    assert (found.kind, found.metric) == (decide.GUARDRAIL_BREACHED, "helpful")
    assert found.figures["margin"] == 0


def test_a_better_variant_that_breaches_a_guardrail_is_no_winner() -> None:
    shares, slow = {"control": 0.6, "warm": 0.7}, {"control": 1.0, "warm": 1.3}
    found = findings(reported(definition(), EVEN, shares, slow))
    assert [one.kind for one in found] == [decide.GUARDRAIL_BREACHED]


def test_a_margin_of_all_of_it_is_never_breached() -> None:
    wanted = definition(guardrails=[{"metric": "helpful", "margin": 1}])
    found = reported(wanted, EVEN, {"control": 0.6, "warm": 0.1})
    assert found.rails[0].state == "open"
    assert "below 1" in str(found.rails[0].comparison.waits_for)


def test_units_that_came_otherwise_than_dealt_make_figures_void() -> None:
    """There is no winner then, and no step of the ramp passes."""
    units, shares = {"control": 2_000, "warm": 1_500}, {"control": 0.6, "warm": 0.75}
    ramp = [{"coverage": 0.1}, {"coverage": 1}]
    found = findings(reported(definition(ramp=ramp), units, shares, stepped=0.0, step_units=9))
    assert [one.kind for one in found] == [decide.SAMPLE_RATIO_MISMATCH]
    assert found[0].figures["is_mismatch"]
    assert "warm 1,500 (1,750 planned)" in found[0].reason


def test_weights_that_were_changed_are_no_mismatch() -> None:
    wanted = definition()
    first = Stretch({"control": 0.5, "warm": 0.5}, {"control": 1_000, "warm": 1_000})
    second = Stretch({"control": 0.2, "warm": 0.8}, {"control": 500, "warm": 2_000})
    own = {"helpful": {"control": share(900, 1_500), "warm": share(1_800, 3_000)}}
    base = standing(wanted, {"control": 1_500, "warm": 3_000}, SAME)
    changed = type(base)(wanted, NOW, [first, second], own)
    assert verdict(report(changed)).kind == decide.KEEP_COLLECTING
    assert verdict(report(base)).kind == decide.SAMPLE_RATIO_MISMATCH


def test_a_step_of_the_ramp_needs_its_units_and_its_hours() -> None:
    ramp = [{"coverage": 0.1, "min_units": 500, "min_hours": 2}, {"coverage": 1}]
    wanted, hour = definition(ramp=ramp), 3_600

    def kind(units: int, hours: float, step: int = 0) -> str:
        more = {"step": step, "stepped": NOW - hours * hour, "step_units": units}
        return verdict(reported(wanted, EVEN, SAME, **more)).kind

    assert kind(500, 2) == decide.RAMP_STEP_PASSED
    assert kind(499, 2) == kind(500, 1.9) == decide.KEEP_COLLECTING
    assert kind(500, 2, step=1) == decide.KEEP_COLLECTING


def test_few_units_are_not_compared_by_what_holds_for_many() -> None:
    """Latency waits for a hundred units of each; proportions are exact from the first one."""
    found = reported(definition(), {"control": 99, "warm": 120}, {"control": 0.2, "warm": 0.9})
    by_metric = {one.metric: one for one in found.comparisons}
    assert by_metric["latency_s"].waits_for == "100 units of each, not 99"
    assert by_metric["helpful"].is_above()


def test_without_a_primary_metric_nothing_is_decided_but_guardrails_hold() -> None:
    wanted = definition(primary=None)
    assert verdict(reported(wanted, EVEN, SAME)).kind == decide.KEEP_COLLECTING
    slow = reported(wanted, EVEN, SAME, {"control": 1.0, "warm": 1.3})
    assert verdict(slow).kind == decide.GUARDRAIL_BREACHED


def test_a_covariate_makes_a_proportion_asymptotic() -> None:
    metrics = [{"name": "helpful", "kind": "proportion", "covariate": "latency_s"}]
    own = {
        key: Moments(1_000, 600, 600, 1_000, 1_000, 600, 900.0, 1_500.0, 700.0, 900.0)
        for key in ("control", "warm")
    }
    base = standing(definition(metrics=metrics), {"control": 1_000, "warm": 1_000}, SAME)
    found = report(type(base)(base.definition, NOW, base.stretches, {"helpful": own}))
    assert found.primary["warm"].method == "asymptotic"
    assert found.primary["warm"].has_covariate


def test_adaptive_traffic_is_judged_by_arm() -> None:
    found = reported(definition(allocation="thompson"), EVEN, {"control": 0.6, "warm": 0.75})
    methods = {one.metric: one.method for one in found.comparisons}
    assert methods == {"helpful": "exact by arm", "latency_s": "asymptotic by arm"}
    assert verdict(found).kind == decide.WINNER


def test_what_is_told_is_json_and_the_table_has_the_same_numbers() -> None:
    found = reported(definition(), EVEN, {"control": 0.6, "warm": 0.7})
    results = {
        "experiment": "acme/tone",
        "version": 2,
        "status": "running",
        "at": NOW,
        "verdict": verdict(found).to_json(),
        "metrics": told.metrics(found),
        "guardrails": [told.guardrail(one) for one in found.rails],
        "shadows": [],
        "units": told.balance(found.balance),
    }
    results = json.loads(json.dumps(results, allow_nan=False))
    rows = told.table(results)
    first = next(row for row in rows if row["variant"] == "warm" and row["metric"] == "helpful")
    assert (first["role"], first["value"], first["units"]) == ("primary", 0.7, 2_000)
    assert first["lower"] == results["metrics"][0]["comparisons"][0]["lower"]
    assert first["lift"] == pytest.approx(0.1 / 0.6)
    assert [row["state"] for row in rows if row["role"] == "guardrail margin"] == ["safe", "safe"]
