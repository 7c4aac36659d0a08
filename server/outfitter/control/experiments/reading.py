"""The fields of a definition, read one by one; each wrong one is named. Pure."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeGuard

from outfitter.errors import ApiError, shorten
from taskvectors.values import kind_of

MAX_TEXT = 2000
MAX_NAME = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MISSING = object()


class Fields:
    """A JSON object whose fields are asked for. where: what it is, such as `variants[1]`.

    Every method raises ApiError (400) whose param is the field: `variants[1].weight`.
    """

    def __init__(self, value: object, where: str, known: Sequence[str]) -> None:
        self.where = where
        if not isinstance(value, Mapping):
            raise wrong(where or "the experiment", value, "an object", param=where or None)
        self.given: Mapping[str, object] = value
        if unknown := sorted(str(key) for key in value if key not in known):
            name = unknown[0][:200]
            message = f"unknown field {self.path(name)!r}; choose {', '.join(known)}"
            raise ApiError(400, message, "unknown_parameter", self.path(name))

    def __contains__(self, name: str) -> bool:
        """Whether the field is there, and not null."""
        return self.given.get(name) is not None

    def path(self, name: str) -> str:
        """What errors call a field."""
        return f"{self.where}.{name}" if self.where else name

    def wrong(self, name: str, right: str) -> ApiError:
        """The error of a field."""
        return wrong(self.path(name), self.given.get(name), right)

    def name(self, name: str, default: str | None = None) -> str:
        """A short name, needed unless there is a default."""
        value = self._get(name, default)
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            raise self.wrong(
                name,
                f"1 to {MAX_NAME} letters, digits, '.', '_' and '-', the first a letter or digit",
            )
        return value

    def text(self, name: str, default: str | None = None, most: int = MAX_TEXT) -> str:
        """A string, needed unless there is a default."""
        value = self._get(name, default)
        if not isinstance(value, str) or len(value) > most or "\0" in value:
            raise self.wrong(name, f"a string of at most {most} characters")
        return value

    def choice(self, name: str, choices: Sequence[str], default: str | None = None) -> str:
        """One of the choices."""
        value = self._get(name, default)
        if not isinstance(value, str) or value not in choices:
            raise self.wrong(name, f"one of {', '.join(choices)}")
        return value

    def number(self, name: str, least: float, most: float, default: float | None = None) -> float:
        """A finite number from `least` to `most`."""
        value = self._get(name, default)
        if not is_number(value) or not least <= value <= most:
            raise self.wrong(name, f"a number from {least:g} to {most:g}")
        return float(value)

    def whole(self, name: str, least: int, most: int, default: int | None = None) -> int:
        """A whole number from `least` to `most`."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(name, f"a whole number from {least} to {most}")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        """True or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def each(self, name: str, known: Sequence[str], most: int) -> Iterator["Fields"]:
        """The objects of a list, of which there may be none."""
        value = self.given.get(name)
        if value is None:
            return
        if not isinstance(value, list):
            raise self.wrong(name, "a list of objects")
        if len(value) > most:
            raise wrong(self.path(name), f"{len(value)} of them", f"at most {most}")
        for position, entry in enumerate(value):
            yield Fields(entry, f"{self.path(name)}[{position}]", known)

    def only(self, name: str, known: Sequence[str]) -> "Fields | None":
        """An object that may be absent."""
        value = self.given.get(name)
        return None if value is None else Fields(value, self.path(name), known)

    def _get(self, name: str, default: object) -> object:
        value = self.given.get(name)
        if value is None and default is None:
            raise ApiError(
                400, f"{self.path(name)} is required", "invalid_parameter", self.path(name)
            )
        return default if value is None else value


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a JSON number that is finite."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def check_unique(names: Iterable[str], what: str, param: str) -> None:
    """Raise ApiError (400) for the first name that occurs twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            message = f"there are two {what} {name!r}; give each a name of its own"
            raise ApiError(400, message, "invalid_parameter", param)
        seen.add(name)


def wrong(what: str, value: object, right: str, param: str | None = None) -> ApiError:
    """400: what was wrong, its value, and what would be right."""
    shown = repr(value)[:80] if isinstance(value, str | int | float) else kind_of(value)
    message = shorten(f"{what} must be {right}, not {shown}")
    return ApiError(400, message, "invalid_parameter", param or what)
