"""JSON from strangers: bounded nesting, no duplicate keys, only finite numbers, real Unicode."""

import json
import math
import re
from collections import Counter
from typing import Any, NoReturn

import numpy as np

from taskvectors.errors import InvalidHeader

MAX_DEPTH = 16

# A string, or what is left after an opening quote; possessive, so the time is linear.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_STEP = np.zeros(256, np.int8)
_STEP[list(b"[{")] = 1
_STEP[list(b"]}")] = -1


def loads(data: bytes, what: str) -> Any:
    """Parse UTF-8 JSON; raises InvalidHeader that begins with `what`."""
    _check_depth(data, what)
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_constant=_refuse_constant,
        )
        if b"\\ud" in data.lower():  # a lone surrogate would fail later, at whoever prints it
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise InvalidHeader(f"{what} is not valid JSON: {str(error)[:200]}") from error
    return value


def dumps(value: object) -> str:
    """Compact JSON with sorted keys: equal values have equal text. Raises InvalidHeader."""
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        text.encode("utf-8")
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidHeader(f"cannot be written as JSON: {error}") from error
    return text


def _check_depth(data: bytes, what: str) -> None:
    brackets = np.frombuffer(_STRING.sub(b"", data), np.uint8)
    depth = int(np.cumsum(_STEP[brackets], dtype=np.int32).max(initial=0))
    if depth > MAX_DEPTH:
        raise InvalidHeader(f"{what} nests {depth} levels deep; at most {MAX_DEPTH} are allowed")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"duplicate key {twice!r}")
    return fields


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"number out of range: {text[:40]}")
    return number


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")
