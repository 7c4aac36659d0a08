"""Definitions of experiments on the command line: a file, or options that say it in a line."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from outfitter.config import InvalidConfig

CONTROL = "control"


def read_definition(path: Path | None) -> dict[str, Any]:
    """What a JSON or YAML file says; nothing without one. Raises InvalidConfig."""
    import yaml  # type: ignore[import-untyped]  # slow to import

    if path is None:
        return {}
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InvalidConfig(f"unsupported --file {str(path)!r}; {error}") from error
    if not isinstance(found, dict):
        raise InvalidConfig(f"unsupported --file {str(path)!r}; it must hold an object")
    return found


def variants_of(
    control: str | None, others: Iterable[str], shadows: Iterable[str], weights: Iterable[str]
) -> list[dict[str, Any]]:
    """The variants that the options say. Raises InvalidConfig."""
    found = [] if control is None else [{"key": CONTROL, **_mix(control)}]
    for text in others:
        key, mix = pair(text, "--variant", "warm=json:0.8,legal:0.2 or warm=acme/bot@3")
        found.append({"key": key, **_mix(mix)})
    own = {str(one["key"]): one for one in found}
    for option, texts, field in (("--shadow", shadows, "shadow"), ("--weight", weights, "weight")):
        for key, number in numbers(texts, option).items():
            if key not in own:
                raise InvalidConfig(f"{option} names no variant {key!r}; choose {', '.join(own)}")
            own[key][field] = number
    return found


def metric_of(text: str, graders: Iterable[str]) -> dict[str, Any]:
    """`helpful:proportion:up`: a name, and if need be its kind and the better direction.

    graders: names, which are measured by those. Raises InvalidConfig.
    """
    name, *more = text.split(":")
    found: dict[str, Any] = {"name": name}
    if name in graders:
        found["source"] = "grader"
    for word in more:
        field = "direction" if word in ("up", "down") else "kind"
        if field in found or (field == "kind" and word not in ("proportion", "mean")):
            raise InvalidConfig(f"unsupported --metric {text!r}; use such as helpful:proportion:up")
        found[field] = word
    return found


def grader_of(text: str) -> dict[str, Any]:
    """`is_json=regex:^{` or `yes=exact:yes`; raises InvalidConfig."""
    right = "is_json=regex:^\\{ or yes=exact:yes"
    name, rule = pair(text, "--grader", right)
    kind, colon, value = rule.partition(":")
    fields = {"regex": "pattern", "exact": "expected"}
    if not colon or kind not in fields:
        raise InvalidConfig(f"unsupported --grader {text!r}; use such as {right}")
    return {"name": name, "kind": kind, fields[kind]: value}


def unit_of(text: str) -> dict[str, str]:
    """`user`, `key` or `header:x-user-id`."""
    by, colon, header = text.partition(":")
    return {"by": by, **({"header": header} if colon else {})}


def step_of(text: str) -> dict[str, Any]:
    """`0.05:200`: a coverage, and the units until the next. Raises InvalidConfig."""
    coverage, colon, units = text.partition(":")
    try:
        step: dict[str, Any] = {"coverage": float(coverage)}
        return {**step, "min_units": int(units)} if colon else step
    except ValueError as error:
        raise InvalidConfig(f"unsupported --ramp {text!r}; use such as 0.05:200") from error


def numbers(texts: Iterable[str], option: str) -> dict[str, float]:
    """`warm=0.7`, repeated; raises InvalidConfig."""
    found = {}
    for text in texts:
        key, value = pair(text, option, "warm=0.7")
        try:
            found[key] = float(value)
        except ValueError as error:
            raise InvalidConfig(f"unsupported {option} {text!r}; use such as warm=0.7") from error
    return found


def settings_of(texts: Iterable[str]) -> dict[str, Any]:
    """`coverage=0.5`, repeated: fields of a definition, as JSON or else as text."""
    found: dict[str, Any] = {}
    for text in texts:
        key, value = pair(text, "--set", "coverage=0.5")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def pair(text: str, option: str, right: str) -> tuple[str, str]:
    """The two sides of `=`; raises InvalidConfig."""
    key, equals, value = text.partition("=")
    if not equals or not key or not value:
        raise InvalidConfig(f"unsupported {option} {text!r}; use such as {right}")
    return key, value


def given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Those that were said."""
    return {name: value for name, value in fields.items() if value not in (None, [], {})}


def _mix(text: str) -> dict[str, Any]:
    """`json:0.8,legal:0.2`, or the name of a model."""
    if ":" not in text:
        return {"model": text}
    vectors: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.rpartition(":")
        try:
            vectors[name] = float(weight)
        except ValueError as error:
            raise InvalidConfig(
                f"unsupported mix {text!r}; use such as json:0.8,legal:0.2"
            ) from error
    return {"task_vectors": vectors}
