"""PEFT's patterns of module names, matched without a regex engine: a hostile one cannot hang it.

A pattern holds letters, digits, `_`, `-`, `\\.`, `.` (any character), `.*`, `^`, `$` and choices of
plain names such as `(q|v)`. As in PEFT it matches a whole name or its trailing components.
"""

import re
from collections.abc import Iterable

from taskvectors.errors import UnsupportedAdapter

_NAME = r"(?:[A-Za-z0-9_-]|\\\.)+"
_TOKEN = re.compile(rf"\.\*|\^|\$|\\?\.|[A-Za-z0-9_-]|\({_NAME}(?:\|{_NAME})*\)")
_MAX_ECHO = 80


def parse_pattern(text: str) -> tuple[str, ...]:
    """The pattern's tokens; raises UnsupportedAdapter."""
    tokens: list[str] = []
    position = 0
    while position < len(text):
        if not (match := _TOKEN.match(text, position)):
            raise _unsupported(text)
        tokens.append(match[0])
        position = match.end()
    if not tokens:
        raise _unsupported(text)
    return tuple(tokens)


def matches(tokens: Iterable[str], name: str) -> bool:
    """As PEFT's `re.match(rf"(.*\\.)?({key})$", name)`, in time of tokens times characters."""
    places = {0} | {i + 1 for i, character in enumerate(name) if character == "."}
    for token in tokens:
        places = _step(token, name, places)
    return len(name) in places


def _step(symbol: str, name: str, places: set[int]) -> set[int]:
    """Where a match that stands at one of `places` may stand after `symbol`."""
    if not places:
        return places
    if symbol == ".*":
        return set(range(min(places), len(name) + 1))
    if symbol == "^":
        return places & {0}
    if symbol == "$":
        return places & {len(name)}
    if symbol == ".":
        return {place + 1 for place in places if place < len(name)}
    words = [word.replace("\\", "") for word in symbol.strip("()").split("|")]
    return {p + len(word) for p in places for word in words if name.startswith(word, p)}


def _unsupported(text: str) -> UnsupportedAdapter:
    return UnsupportedAdapter(
        f"unsupported rank or alpha pattern {text[:_MAX_ECHO]!r}; write module names, with . or"
        r" \. between their parts, .* and choices such as (q|v)"
    )
