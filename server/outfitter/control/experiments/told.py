"""A report as the API, the command line and the CSV tell it: the same numbers. Pure."""

import math
from collections.abc import Mapping
from typing import Any

from outfitter.control.experiments.compare import Comparison
from outfitter.control.experiments.report import Rail, Report, role_of, told_metrics
from outfitter.statistics.balance import ALPHA, Balance
from outfitter.statistics.contrast import Estimate

COLUMNS = (
    *("experiment", "version", "status", "at", "verdict", "metric", "role", "kind", "direction"),
    *("variant", "units", "value", "error", "factor", "effect", "lift", "lower", "upper"),
    *("p_value", "alpha", "method", "covariate", "waits_for", "margin", "state"),
)
"""Of the CSV: a row per metric and variant, then per guardrail and variant, and per shadow."""


def metrics(report: Report) -> list[dict[str, Any]]:
    """Of every metric: what the variants have, and how they compare with the control."""
    definition, found = report.definition, []
    for name in told_metrics(definition):
        metric = definition.measured[name]
        arms = {key: _arm(one) for key, one in _estimates(report, name).items()}
        compared = [comparison(one) for one in report.comparisons if one.metric == name]
        control = arms.get(definition.control, {}).get("value")
        for one in compared:
            one["lift"] = _lift(one["effect"], control)
        head = {"name": name, "role": role_of(definition, name), "kind": metric.kind}
        more = {"direction": metric.direction, "min_effect": metric.min_effect}
        found.append({**head, **more, "variants": arms, "comparisons": compared})
    return found


def table(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the CSV, from what the API tells; empty cells are None.

    In rows of guardrails, `effect` is variant − factor·control, and `state` says what follows. In
    rows of shadows, `units` are pairs of requests, and `effect` is copies − originals.
    """
    names = ("experiment", "version", "status", "at")
    head = {**{name: results[name] for name in names}, "verdict": results["verdict"]["kind"]}
    rows = []
    for metric in results["metrics"]:
        about = {**head, "metric": metric["name"]}
        about |= {name: metric[name] for name in ("role", "kind", "direction")}
        compared = {one["variant"]: one for one in metric["comparisons"]}
        for key, arm in metric["variants"].items():
            rows.append({**about, **compared.get(key, {}), "variant": key, **arm})
    by_name = {metric["name"]: metric for metric in results["metrics"]}
    for rail in results["guardrails"]:
        own = by_name[rail["metric"]]
        about = {"kind": own["kind"], "direction": own["direction"], "role": "guardrail margin"}
        rows.append({**head, **about, **rail})
    for shadow in results["shadows"]:
        about = {**head, "role": "shadow", "variant": shadow["variant"]}
        for metric in shadow["metrics"]:
            own = {"metric": metric["name"], "units": metric["pairs"]}
            rows.append({**about, **metric, **own})
    return [{name: row.get(name) for name in COLUMNS} for row in rows]


def comparison(one: Comparison) -> dict[str, Any]:
    """Every figure of a comparison."""
    return {
        "metric": one.metric,
        "variant": one.variant,
        "factor": one.factor,
        "effect": finite(one.effect),
        "lower": finite(one.lower),
        "upper": finite(one.upper),
        "p_value": finite(one.p_value),
        "alpha": one.alpha,
        "units": one.n,
        "method": one.method,
        "covariate": one.has_covariate,
        "waits_for": one.waits_for,
    }


def guardrail(one: Rail) -> dict[str, Any]:
    """A guardrail, with its comparison."""
    own = {"margin": one.guardrail.margin, "state": one.state}
    return {**comparison(one.comparison), **own}


def balance(one: Balance) -> dict[str, Any]:
    """How units were to come, and came. e_value: valid at any peek; p_value: at one look only."""
    return {
        "units": dict(one.counts),
        "planned": {key: finite(value) for key, value in one.expected.items()},
        "e_value": finite(math.exp(one.log_e)) if one.log_e < 700 else None,
        "p_value_any_time": math.exp(-max(0.0, one.log_e)),
        "p_value_chi_square": one.p_value,
        "alpha": ALPHA,
        "is_mismatch": one.is_mismatch,
    }


def finite(value: float | None) -> float | None:
    """As JSON can tell it."""
    return None if value is None or not math.isfinite(value) else value


def _estimates(report: Report, name: str) -> dict[str, tuple[int, Estimate | None]]:
    own = report.standing.moments.get(name, {})
    known = report.estimates.get(name, {})
    serving = {key: own.get(key) for key in (*report.definition.shares, *own)}
    return {key: (m.n if m else 0, known.get(key)) for key, m in serving.items()}


def _arm(given: tuple[int, Estimate | None]) -> dict[str, Any]:
    units, one = given
    value = None if one is None else finite(one.value)
    return {"units": units, "value": value, "error": None if one is None else finite(one.error)}


def _lift(effect: float | None, control: float | None) -> float | None:
    return effect / control if effect is not None and control else None
