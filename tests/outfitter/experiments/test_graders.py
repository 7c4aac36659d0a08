"""Graders: what is right, what is refused, and that nothing takes long."""

import random
import resource
import time
from contextlib import suppress

import jsonschema
import pytest

from outfitter.control.experiments.graders import MAX_ANSWER, Grader, NotGraded
from outfitter.errors import ApiError

EVIL = "(a|aa)+$"
POISON = "a" * 60 + "!"


def grader(kind: str, rule: object, **more: object) -> Grader:
    name = {"regex": "pattern", "json_schema": "schema", "exact": "expected"}[kind]
    return Grader.of({"name": "g", "kind": kind, name: rule, **more})


@pytest.mark.parametrize(
    ("kind", "rule", "right", "wrong"),
    [
        ("regex", r"\d{3}", "it is 123", "it is 12"),
        ("regex", "(?i)^yes", "Yes, sir", "no, yes"),
        ("exact", " Paris\n", "Paris ", "paris"),
        ("json_schema", {"type": "object", "required": ["a"]}, ' {"a": 1}\n', "{}"),
        ("json_schema", {"type": "object"}, "{}", "{} and more"),
        ("json_schema", {"type": "number"}, "1.5", "NaN"),
        ("json_schema", {"pattern": "^a+$"}, '"aaa"', '"b"'),
        ("json_schema", {"uniqueItems": True}, "[1, true, {}]", '[1, 1.0, {"a": 2}]'),
        ("json_schema", {"additionalProperties": False}, "{}", '{"a": 1}'),
        ("json_schema", True, "[]", "["),
        (
            "json_schema",
            {"patternProperties": {"^x": {"type": "null"}}, "additionalProperties": False},
            '{"x1": null}',
            '{"x1": 1}',
        ),
        (
            "json_schema",
            {"$defs": {"n": {"type": "integer"}}, "items": {"$ref": "#/$defs/n"}},
            "[1, 2]",
            '[1, "2"]',
        ),
        (
            "json_schema",
            {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "null"}]},
            "[null]",
            "[1]",
        ),
    ],
)
def test_a_grade_says_whether_an_answer_is_right(
    kind: str, rule: object, right: str, wrong: str
) -> None:
    """1 or 0."""
    one = grader(kind, rule)
    assert (one.grade(right), one.grade(wrong)) == (1.0, 0.0)
    assert Grader.of(one.to_json()) == one


@pytest.mark.parametrize(
    "rule",
    [
        {"pattern": EVIL},
        {"patternProperties": {EVIL: {}}},
        {"properties": {"b": {}}, "patternProperties": {EVIL: {}}, "additionalProperties": False},
        {"propertyNames": {"pattern": EVIL}},
        {"items": {"$ref": "#"}, "allOf": [{"pattern": EVIL}]},
    ],
)
def test_a_pattern_that_backtracks_forever_is_left(rule: dict) -> None:
    """The answer then has no grade."""
    began = time.monotonic()
    with pytest.raises(NotGraded):
        grader("regex", EVIL).grade(POISON)
    answer = f'{{"{POISON}": 1}}' if "roperties" in str(rule) else f'"{POISON}"'
    answer = f'{{"{POISON}": 1}}' if "propertyNames" in rule else answer
    with pytest.raises(NotGraded):
        grader("json_schema", rule).grade(answer)
    assert time.monotonic() - began < 5


def test_a_schema_that_doubles_itself_is_left() -> None:
    """Thirty levels, two references each, would be a billion looks."""
    defs = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)}
    defs["d30"] = {"type": "null"}
    began = time.monotonic()
    with pytest.raises(NotGraded):
        grader("json_schema", {"$defs": defs, "$ref": "#/$defs/d0"}).grade("null")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("rule", [{"$ref": "#"}, {"$ref": "#/$defs/none"}])
def test_a_reference_to_itself_or_to_nothing_gives_no_grade(rule: dict) -> None:
    """It does not end the process either."""
    with pytest.raises(NotGraded):
        grader("json_schema", rule).grade("1")


def test_patterns_that_take_megabytes_are_not_kept_by_the_hundred() -> None:
    """A schema may have as many, each of them within its bound."""
    rule = {"allOf": [{"pattern": f"a{{{9_000 + i}}}"} for i in range(300)]}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    one = grader("json_schema", rule)
    with suppress(NotGraded):
        one.grade(f'"{"a" * 10_000}"')
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 2**10


@pytest.mark.parametrize(
    ("rule", "answer"),
    [
        ({"multipleOf": 0.1}, "1e400"),
        ({"multipleOf": 0.1}, "1" + "0" * 400),
        (
            {"$schema": "http://json-schema.org/draft-04/schema#", "patternProperties": {"(": {}}},
            "{}",
        ),
    ],
)
def test_what_the_library_stumbles_over_gives_no_grade(rule: dict, answer: str) -> None:
    """Other graders of the same answer go on."""
    with pytest.raises(NotGraded):
        grader("json_schema", rule).grade(answer.replace("{}", '{"a": 1}'))


def test_unique_items_take_linear_time() -> None:
    """Five thousand objects."""
    answer = "[" + ",".join(f'{{"{i:x}":0}}' for i in range(5_000)) + "]"
    began = time.monotonic()
    assert grader("json_schema", {"uniqueItems": True}).grade(answer) == 1.0
    assert time.monotonic() - began < 2


def test_a_long_answer_and_a_deep_one_are_no_trouble() -> None:
    """The one has no grade, the other is no JSON."""
    with pytest.raises(NotGraded):
        grader("regex", "a").grade("a" * (MAX_ANSWER + 1))
    assert grader("json_schema", True).grade("[" * 60_000) == 0.0


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ([], "grader", "object"),
        ({"name": "g"}, "grader.kind", "required"),
        ({"name": "g", "kind": "llm"}, "grader.kind", "regex, json_schema, exact, not 'llm'"),
        ({"name": "g", "kind": "regex"}, "grader.pattern", "required"),
        ({"name": "", "kind": "regex", "pattern": "a"}, "grader.name", "1 to 64"),
        ({"name": "g", "kind": "regex", "pattern": "("}, "grader.pattern", "regular expression"),
        ({"name": "g", "kind": "regex", "pattern": 3}, "grader.pattern", "not 3"),
        ({"name": "g", "kind": "regex", "pattern": "a{200000}"}, "grader.pattern", "10,000"),
        ({"name": "g", "kind": "regex", "pattern": "(?:a{999}){999}"}, "grader.pattern", "repeat"),
        (
            {"name": "g", "kind": "regex", "pattern": "(?x)a{ 200#\n000}"},
            "grader.pattern",
            "repeat",
        ),
        (
            {"name": "g", "kind": "json_schema", "schema": {"pattern": "a{200000}"}},
            "grader.schema",
            "pattern",
        ),
        ({"name": "g", "kind": "regex", "pattern": "a" * 2001}, "grader.pattern", "2000"),
        ({"name": "g", "kind": "exact", "expected": 3}, "grader.expected", "not 3"),
        ({"name": "g", "kind": "exact", "expected": "a", "schema": 1}, "grader.schema", "absent"),
        ({"name": "g", "kind": "exact", "expected": "a", "more": 1}, "grader.more", "choose"),
        ({"name": "g", "kind": "exact", "expected": "a", "sample": 2}, "grader.sample", "0 to 1"),
        ({"name": "g", "kind": "json_schema", "schema": 3}, "grader.schema", "JSON schema"),
        ({"name": "g", "kind": "json_schema", "schema": {"type": "x"}}, "grader.schema", "type"),
        ({"name": "g", "kind": "json_schema", "schema": {"pattern": "("}}, "grader.schema", "("),
        (
            {"name": "g", "kind": "json_schema", "schema": {"$ref": "http://127.0.0.1/x"}},
            "grader.schema",
            "#/$defs/x",
        ),
        (
            {"name": "g", "kind": "json_schema", "schema": {"$schema": "http://x/y"}},
            "grader.schema",
            "2020-12",
        ),
        (
            {"name": "g", "kind": "json_schema", "schema": {"items": {"$schema": "http://x"}}},
            "grader.schema",
            "top",
        ),
        (
            {
                "name": "g",
                "kind": "json_schema",
                "schema": {"unevaluatedProperties": False, "patternProperties": {"a": {}}},
            },
            "grader.schema",
            "additionalProperties",
        ),
    ],
)
def test_a_grader_that_cannot_be_is_refused(fields: object, param: str, said: str) -> None:
    """With what was wrong, and what would be right."""
    with pytest.raises(ApiError) as caught:
        Grader.of(fields)
    assert caught.value.status == 400
    assert caught.value.param == param
    assert said in caught.value.message


def test_a_deep_schema_is_refused() -> None:
    """Before it is looked at."""
    schema: dict = {}
    for _ in range(40):
        schema = {"not": schema}
    with pytest.raises(ApiError, match="deeper"):
        grader("json_schema", schema)


def test_a_sample_is_the_share_that_was_asked_for_and_the_same_everywhere() -> None:
    """Within five standard deviations of 10,000 requests."""
    one, same = grader("regex", "a", sample=0.2), grader("regex", "b", sample=0.2)
    chosen = [i for i in range(10_000) if one.is_sampled(f"r{i}")]
    assert abs(len(chosen) - 2_000) < 200
    assert [i for i in range(10_000) if same.is_sampled(f"r{i}")] == chosen
    assert all(grader("regex", "a").is_sampled(f"r{i}") for i in range(100))


SCHEMAS = (
    {"type": ["object", "array"], "uniqueItems": True, "additionalProperties": {"type": "integer"}},
    {"patternProperties": {"^a": {"minimum": 3}}, "required": ["b"], "maxProperties": 2},
    {"anyOf": [{"pattern": "^a.c$"}, {"items": {"enum": [1, "a", None]}, "minItems": 2}]},
)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_bounded_schema_says_what_the_library_says(schema: dict) -> None:
    """On five hundred drawn values."""
    import json

    draw, one = random.Random(7), grader("json_schema", schema)
    leaves = (1, 1.0, 3, True, False, None, "a", "abc", "b", [], {})

    def value(depth: int) -> object:
        if depth == 0 or draw.random() < 0.3:
            return draw.choice(leaves)
        if draw.random() < 0.5:
            return [value(depth - 1) for _ in range(draw.randrange(4))]
        return {draw.choice(("a", "ab", "b", "c")): value(depth - 1) for _ in range(3)}

    library = jsonschema.Draft202012Validator(schema)
    for _ in range(500):
        drawn = value(3)
        assert one.grade(json.dumps(drawn)) == float(library.is_valid(drawn)), drawn
