"""Graders in code: a regular expression, a JSON schema or an expected text, on an answer. Pure.

Whatever the pattern, the schema and the answer are, a grade takes bounded time: a pattern, be it
within a schema, is given up after `TIME_S`, and so is a schema. References to other documents are
never followed.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import jsonschema
import regex
from jsonschema import FormatChecker, validators
from jsonschema.exceptions import SchemaError
from referencing.jsonschema import EMPTY_REGISTRY

from outfitter.control.experiments.reading import Fields, wrong
from outfitter.errors import ApiError, shorten

REGEX, JSON_SCHEMA, EXACT = KINDS = ("regex", "json_schema", "exact")
_RULES = {REGEX: "pattern", JSON_SCHEMA: "schema", EXACT: "expected"}
"""The field of each kind that says what is right."""
FIELDS = ("name", "kind", "sample", *_RULES.values())

TIME_S = 0.1
"""Of one grade, seconds."""
MAX_ANSWER = 64 * 2**10
"""Characters of an answer that are graded; a longer one has no grade."""
MAX_PATTERN = 2_000
MAX_REPEATS = 10_000
"""What the counts in a pattern multiply to: each repetition is compiled into 300 bytes."""
MAX_KEPT = 100
"""Patterns of schemas with more are not kept compiled: there may be hundreds of them."""
MAX_SCHEMA = 64 * 2**10
"""Of a schema as JSON, in bytes; an expected text may be as long."""
MAX_DEPTH = 32
_FORMATS = FormatChecker(formats=())
_REPEAT = regex.compile(r"\{((?:[0-9\s]|#[^\n]*\n)*+)")
"""A count; with (?x) there may be spaces and comments in it."""


class NotGraded(ValueError):
    """An answer is too long for a grader, or grading it took too long."""


@dataclass(frozen=True)
class Grader:
    """Grades answers 1 or 0. sample: the share of requests whose answers it grades, 0 to 1.

    rule: a pattern that must be found somewhere in the answer, a JSON schema that the answer must
    be valid JSON for, or the text that it must be, but for white space around it.
    """

    name: str
    kind: str
    rule: Any = field(hash=False)
    sample: float = 1.0
    _check: Callable[[str], bool] = field(repr=False, compare=False, default=lambda _: False)

    @classmethod
    def parse(cls, fields: Fields) -> "Grader":
        """One of `graders`, whose fields are FIELDS. Raises ApiError (400)."""
        name, kind = fields.name("name"), fields.choice("kind", KINDS)
        for other, label in _RULES.items():
            if other != kind and label in fields:
                raise fields.wrong(label, f"absent where kind is {kind}")
        label = _RULES[kind]
        if label not in fields.given:
            message = f"{fields.path(label)} is required where kind is {kind}"
            raise ApiError(400, message, "invalid_parameter", fields.path(label))
        rule = fields.given[label]
        check = _CHECKS[kind](rule, fields.path(label))
        return cls(name, kind, rule, fields.number("sample", 0, 1, 1.0), check)

    @classmethod
    def of(cls, given: object, where: str = "grader") -> "Grader":
        """From JSON: `{"name": "is_json", "kind": "regex", "pattern": "…"}`.

        where: what errors call it. Raises ApiError (400).
        """
        return cls.parse(Fields(given, where, FIELDS))

    def to_json(self) -> dict[str, object]:
        """What `parse` reads."""
        fields = {"name": self.name, "kind": self.kind, _RULES[self.kind]: self.rule}
        return {**fields, "sample": self.sample}

    def is_sampled(self, request_id: str) -> bool:
        """Whether the answer to a request is graded: the same for one request everywhere."""
        digest = hashlib.blake2b(f"{self.name}\n{request_id}".encode(), digest_size=8).digest()
        return int.from_bytes(digest) < self.sample * 2**64

    def grade(self, text: str) -> float:
        """1.0 for an answer that is right, else 0.0. Raises NotGraded."""
        if len(text) > MAX_ANSWER:
            raise NotGraded(f"{len(text)} characters; grader {self.name!r} takes {MAX_ANSWER}")
        try:
            return float(self._check(text))
        except TimeoutError as error:
            message = f"grader {self.name!r} takes longer than {TIME_S} s for this answer"
            raise NotGraded(message) from error
        except (ValueError, ArithmeticError, RecursionError, regex.error, _Unresolvable) as error:
            raise NotGraded(f"grader {self.name!r} fails: {str(error)[:200]}") from error


def _regex(pattern: object, param: str, *, is_kept: bool = True) -> Callable[[str], bool]:
    if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN:
        raise wrong(param, pattern, f"a regular expression of up to {MAX_PATTERN} characters")
    try:
        compiled = _compiled(pattern, is_kept=is_kept)
    except (ValueError, regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise wrong(param, pattern, f"a regular expression ({error})") from error
    return lambda text: compiled.search(text, timeout=TIME_S) is not None


def _compiled(pattern: str, *, is_kept: bool) -> regex.Pattern[str]:
    """Raises regex.error, and ValueError for one that takes too much memory."""
    repeats = 1
    for told in _REPEAT.findall(pattern):
        digits = "".join(regex.findall("[0-9]", regex.sub("#[^\n]*\n", "", told)))
        repeats *= max(1, int(digits or 1))
    if repeats > MAX_REPEATS:
        raise ValueError(f"its counts repeat {repeats} times; at most {MAX_REPEATS:,}")
    return regex.compile(pattern, cache_pattern=is_kept or repeats <= MAX_KEPT)


def _exact(expected: object, param: str) -> Callable[[str], bool]:
    if not isinstance(expected, str) or len(expected) > MAX_SCHEMA:
        raise wrong(param, expected, f"a text of up to {MAX_SCHEMA} characters")
    trimmed = expected.strip()
    return lambda text: text.strip() == trimmed


def _json_schema(schema: object, param: str) -> Callable[[str], bool]:
    _check_size(schema, param)
    _check_words(schema, param)
    found = validators.validator_for(schema, default=None)
    if found is None:
        asked = schema.get("$schema") if isinstance(schema, Mapping) else None
        if asked is not None:
            known = "https://json-schema.org/draft/2020-12/schema"
            raise wrong(f"{param}.$schema", asked, f"a known draft, such as {known}", param)
        found = jsonschema.Draft202012Validator
    try:
        found.check_schema(schema, format_checker=_FORMATS)
    except SchemaError as error:
        where = "/".join(map(str, error.absolute_path))
        message = f"{param} is no JSON schema: {where}: {error.message}"
        raise ApiError(400, shorten(message), "invalid_parameter", param) from error
    bounded = validators.extend(found, _bounded(found.VALIDATORS))
    own = (
        {k: v for k, v in schema.items() if k != "$schema"} if isinstance(schema, dict) else schema
    )

    def check(text: str) -> bool:
        try:
            instance = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return False
        token = _UNTIL.set(time.monotonic() + TIME_S)
        try:
            return bool(bounded(own, registry=EMPTY_REGISTRY).is_valid(instance))
        finally:
            _UNTIL.reset(token)

    return check


_UNTIL: ContextVar[float] = ContextVar("grader_until")
"""The end of a grade's time, for every keyword of its schema; time.monotonic()."""

Keyword = Callable[[Any, Any, Any, Any], Iterator[Any] | None]


def _bounded(keywords: Mapping[str, Keyword]) -> dict[str, Keyword]:
    """Those of a draft, each of which looks at the clock."""
    own = {name: _OWN[name] for name in _OWN if name in keywords}
    return {name: _in_time(keyword) for name, keyword in {**keywords, **own}.items()}


def _in_time(keyword: Keyword) -> Keyword:
    def checked(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
        if time.monotonic() > _UNTIL.get():
            raise TimeoutError
        yield from keyword(validator, value, instance, schema) or ()

    return checked


def _pattern(validator: Any, pattern: str, instance: Any, _: Any) -> Iterator[Any]:
    if validator.is_type(instance, "string") and not _found(pattern, instance):
        yield jsonschema.ValidationError("the pattern is not found")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, _: Any) -> Iterator[Any]:
    if validator.is_type(instance, "object"):
        for pattern, subschema in patterns.items():
            for key, value in instance.items():
                if _found(pattern, key):
                    yield from validator.descend(value, subschema, key, pattern)


def _additional_properties(validator: Any, more: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if not validator.is_type(instance, "object"):
        return
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for key, value in instance.items():
        if key in known or any(_found(pattern, key) for pattern in patterns):
            continue
        yield from validator.descend(value, more, path=key)


def _unique_items(validator: Any, wanted: Any, instance: Any, _: Any) -> Iterator[Any]:
    """In linear time; the library compares each with each where they cannot be sorted."""
    if wanted and validator.is_type(instance, "array"):
        seen = {json.dumps(_plain(item), sort_keys=True) for item in instance}
        if len(seen) < len(instance):
            yield jsonschema.ValidationError("items are not unique")


_OWN: dict[str, Keyword] = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "uniqueItems": _unique_items,
}


def _found(pattern: str, text: str) -> bool:
    left = max(_UNTIL.get() - time.monotonic(), 0.001)
    return _compiled(pattern, is_kept=False).search(text, timeout=left) is not None


def _plain(value: Any) -> Any:
    """A value whose JSON is that of what it is equal to: 1.0 is 1."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _check_size(schema: object, param: str) -> None:
    if not isinstance(schema, Mapping | bool):
        raise wrong(param, schema, "a JSON schema, such as {}")
    if _depth(schema) > MAX_DEPTH:
        raise wrong(param, f"a deeper one: {json.dumps(schema)}", f"at most {MAX_DEPTH} deep")
    size = len(json.dumps(schema))
    if size > MAX_SCHEMA:
        raise wrong(param, size, f"of at most {MAX_SCHEMA} bytes")


def _depth(value: object, above: int = 0) -> int:
    if above > MAX_DEPTH or not isinstance(value, Mapping | list):
        return above
    return max((_depth(part, above + 1) for part in _parts(value)), default=above + 1)


def _check_words(schema: object, param: str) -> None:
    """Refuse what would leave the bounds: other documents, and patterns that the library runs."""
    words = list(_words(schema))
    nested = [word for part in _parts(schema) for word in _words(part)]
    if any(name == "$schema" and isinstance(value, str) for name, value in nested):
        raise wrong(param, "$schema within", "a schema with $schema at its top only")
    for name, value in words:
        if name in _REFERENCES and isinstance(value, str) and not value.startswith("#"):
            right = "a reference to a part of this schema, such as #/$defs/x"
            raise wrong(f"{param}: {name}", value, right, param)
    names = {name for name, _ in words}
    if {"unevaluatedProperties", "patternProperties"} <= names:
        right = "one without: use additionalProperties"
        raise wrong(param, "unevaluatedProperties beside patternProperties", right)


_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


def _words(schema: object) -> Iterator[tuple[str, object]]:
    """Every key of every object, and what it holds."""
    if isinstance(schema, Mapping):
        yield from schema.items()
    for part in _parts(schema):
        yield from _words(part)


def _parts(schema: object) -> Iterable[object]:
    if isinstance(schema, Mapping):
        return schema.values()
    return schema if isinstance(schema, list) else ()


def _is_pattern(value: object) -> bool:
    if isinstance(value, str):
        _regex(value, "pattern", is_kept=False)
    return True


_FORMATS.checks("regex", raises=ApiError)(_is_pattern)
_Unresolvable = jsonschema.exceptions._WrappedReferencingError
_CHECKS: Mapping[str, Callable[[object, str], Callable[[str], bool]]] = {
    REGEX: _regex,
    JSON_SCHEMA: _json_schema,
    EXACT: _exact,
}
