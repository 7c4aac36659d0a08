"""A definition is read whole, told whole, and every wrong field is named."""

import copy

import pytest

from outfitter.control.experiments.definition import Definition
from outfitter.errors import ApiError

WHOLE = {
    "name": "acme/tone",
    "hypothesis": "Warmth helps.",
    "variants": [
        {"key": "control", "model": "acme/bot@3", "weight": 0.5},
        {"key": "warm", "task_vectors": {"warm": 0.8}, "weight": 0.5},
        {"key": "new", "task_vectors": {"vectors": {"a": 1}, "method": "ties"}, "shadow": 0.1},
    ],
    "control": "control",
    "coverage": 0.8,
    "layer": {"name": "chat", "range": [0.0, 0.5]},
    "holdout": {"name": "q4", "range": [0.0, 0.05]},
    "unit": {"by": "header", "header": "x-user-id"},
    "metrics": [
        {
            "name": "helpful",
            "source": "feedback",
            "kind": "ratio",
            "direction": "up",
            "denominator": "requests",
            "min_effect": 0.02,
            "covariate": "before",
        },
        {"name": "before", "source": "feedback"},
        {"name": "is_json", "source": "grader"},
    ],
    "primary": "helpful",
    "guardrails": [{"metric": "latency_s", "margin": 0.1}],
    "alpha": 0.01,
    "ramp": [{"coverage": 0.05, "min_units": 200, "min_hours": 2}, {"coverage": 1.0}],
    "allocation": "thompson",
    "graders": [{"name": "is_json", "kind": "regex", "pattern": "^{", "sample": 0.5}],
    "automatic": {"rollback": False, "ship": "save", "ship_as": "acme/bot", "veto_s": 60},
}
SMALL = {
    "name": "tone",
    "variants": [{"key": "a", "model": "base"}, {"key": "b", "task_vectors": {"warm": 1}}],
}


def test_round_trip() -> None:
    """What is told of a definition is the same definition."""
    definition = Definition.parse(WHOLE)
    assert Definition.parse(definition.to_json()) == definition
    assert Definition.parse(Definition.parse(SMALL).to_json()) == Definition.parse(SMALL)


def test_defaults() -> None:
    """Two variants are enough: the first is the control, and the traffic is shared equally."""
    definition = Definition.parse(SMALL)
    assert definition.control == "a"
    assert definition.shares == {"a": 0.5, "b": 0.5}
    assert definition.coverage_at(7) == 1.0


def test_derived() -> None:
    """Shadows have no share; a ramp bounds the coverage, and named built-ins are measured."""
    definition = Definition.parse(WHOLE)
    assert definition.shares == {"control": 0.5, "warm": 0.5}
    assert [one.key for one in definition.shadows] == ["new"]
    assert [definition.coverage_at(step) for step in (0, 1, 2)] == [0.05, 0.8, 0.8]
    assert set(definition.measured) == {"helpful", "before", "is_json", "requests", "latency_s"}
    assert definition.measured["is_json"].kind == "proportion"
    assert definition.weighted({"warm": 1.5}).shares == {"control": 0.25, "warm": 0.75}


def test_changed() -> None:
    """A change replaces the fields that it names, and null puts the default back."""
    changed = Definition.parse(WHOLE).changed({"layer": None, "alpha": 0.1, "coverage": None})
    assert (changed.layer, changed.alpha, changed.coverage) == (None, 0.1, 1.0)
    assert changed.hypothesis == "Warmth helps."
    with pytest.raises(ApiError, match="keeps its name") as refused:
        changed.changed({"name": "acme/other"})
    assert refused.value.param == "name"


WRONG = [
    ("name", "a@3", "name", "namespace/name"),
    ("name", None, "name", "required"),
    ("name", 3, "name", "string"),
    ("nmae", "x", "nmae", "choose name"),
    ("hypothesis", 3, "hypothesis", "string"),
    ("variants", None, "variants", "two or more"),
    ("variants", {}, "variants", "list"),
    ("variants[1]", 3, "variants[1]", "object"),
    ("variants[1].key", "control", "variants", "'control'"),
    ("variants[1].key", "a b", "variants[1].key", "letters"),
    ("variants[1].weight", -1, "variants[1].weight", "from 0 to"),
    ("variants[1].weight", True, "variants[1].weight", "number"),
    ("variants[1].weight", float("nan"), "variants[1].weight", "number"),
    ("variants[1].task_vectors", {"warm": 99}, "variants[1].task_vectors", "16"),
    ("variants[1].model", "acme/bot", "variants[1]", "either model or task_vectors"),
    ("variants[1].task_vectors", None, "variants[1]", "neither"),
    ("variants[0].model", "exp:other", "variants[0].model", "saved loadout"),
    ("variants[2].weight", 1, "variants[2].weight", "serves nobody"),
    ("variants[2].shadow", 2, "variants[2].shadow", "from 0 to 1"),
    ("variants[0].weight", 0, "control", "with a weight"),
    ("control", "cold", "control", "control, warm, new"),
    ("control", "new", "control", "with a weight"),
    ("coverage", 1.5, "coverage", "from 0 to 1"),
    ("layer", "chat", "layer", "object"),
    ("layer.range", [0.5, 0.5], "layer.range", "greater"),
    ("layer.range", [0, 2], "layer.range.end", "from 0 to 1"),
    ("holdout.range", [0], "holdout.range", "two numbers"),
    ("unit.by", "cookie", "unit.by", "user, header, key"),
    ("unit.header", "Authorization", "unit.header", "no secret"),
    ("unit.by", "key", "unit.header", "absent"),
    ("metrics[0].name", "before", "metrics", "'before'"),
    ("metrics[0].source", "latency", "metrics[0].source", "latency_s"),
    ("metrics[1].name", "error", "metrics[1].source", "built-in"),
    ("metrics[0].kind", "median", "metrics[0].kind", "proportion, mean, ratio"),
    ("metrics[0].kind", "mean", "metrics[0].denominator", "absent"),
    ("metrics[0].denominator", None, "metrics[0].denominator", "name of a metric"),
    ("metrics[0].denominator", "helpful", "metrics[0].denominator", "ratio"),
    ("metrics[0].covariate", "nothing", "metrics[0].covariate", "latency_s"),
    ("metrics[2].name", "is_xml", "metrics[2].name", "is_json"),
    ("primary", "helpless", "primary", "helpful"),
    ("primary", None, "primary", "decides"),
    ("guardrails[0].metric", "speed", "guardrails[0].metric", "latency_s"),
    ("guardrails[0].margin", -1, "guardrails[0].margin", "from 0"),
    ("alpha", 0, "alpha", "0.5"),
    ("alpha", "low", "alpha", "number"),
    pytest.param("alpha", 10**400, "alpha", "0.5", id="no float holds it"),
    pytest.param("coverage", 10**400, "coverage", "from 0 to 1", id="nor this"),
    ("ramp[1].coverage", 0.05, "ramp[1].coverage", "more than 0.05"),
    ("ramp[0].min_units", 1.5, "ramp[0].min_units", "whole"),
    ("allocation", "greedy", "allocation", "fixed, thompson"),
    ("graders[0].kind", "llm", "graders[0].kind", "regex, json_schema, exact"),
    ("graders[0].pattern", "(", "graders[0].pattern", "regular expression"),
    ("graders[0].schema", {}, "graders[0].schema", "absent"),
    ("graders[0].kind", "json_schema", "graders[0].pattern", "absent"),
    ("automatic.rollback", 1, "automatic.rollback", "true or false"),
    ("automatic.ship", "yes", "automatic.ship", "off, save, promote"),
    ("automatic.ship_as", None, "automatic.ship_as", "saved loadout"),
    ("automatic.veto_s", -1, "automatic.veto_s", "from 0"),
]


@pytest.mark.parametrize(("where", "value", "param", "told"), WRONG)
def test_wrong_fields(where: str, value: object, param: str, told: str) -> None:
    """A wrong field is refused by its path, with what would be right."""
    given = copy.deepcopy(WHOLE)
    *path, last = where.replace("[", ".").replace("]", "").split(".")
    at: object = given
    for part in path:
        at = at[int(part)] if isinstance(at, list) else at[part]
    at[int(last) if isinstance(at, list) else last] = value
    with pytest.raises(ApiError) as refused:
        Definition.parse(given)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert told in refused.value.message
