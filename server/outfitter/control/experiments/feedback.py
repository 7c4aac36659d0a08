"""What a client says of an answer that it got: read field by field. Pure."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from outfitter.control.experiments.reading import Fields
from outfitter.errors import ApiError

FIELDS = ("request_id", "metric", "value", "label", "id")
MAX_VALUE = 1e12
MIN_VALUE = 1e-100
"""What is nearer to 0 is 0: the square of 1e-200 is no number, and sums of it are errors."""
MAX_LABEL = 256
MAX_LINES = 10_000
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(frozen=True)
class Feedback:
    """A number or a label for one request. id: tells several of one metric apart.

    The same request, metric and id again replace what was said.
    """

    request_id: str
    metric: str
    value: float | None = None
    label: str | None = None
    id: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What it replaces has the same."""
        return self.request_id, self.metric, self.id

    @classmethod
    def parse(cls, given: object, where: str = "") -> Self:
        """From JSON. where: what errors call it. Raises ApiError (400)."""
        fields = Fields(given, where, FIELDS)
        request_id = fields.text("request_id", most=128)
        if not _REQUEST_ID.fullmatch(request_id):
            right = "the x-request-id of an answer: 1 to 128 letters, digits and ._:-"
            raise fields.wrong("request_id", right)
        metric = fields.name("metric")
        if ("value" in fields) == ("label" in fields):
            has = "both" if "value" in fields else "neither"
            message = f"{fields.where or 'feedback'} needs either value or label, and has {has}"
            raise ApiError(400, message, "invalid_parameter", fields.path("value"))
        value = _number(fields) if "value" in fields else None
        label = fields.text("label", most=MAX_LABEL) if "label" in fields else None
        if label is not None and not (label and label.isprintable()):
            raise fields.wrong("label", f"1 to {MAX_LABEL} printable characters")
        id_ = fields.name("id") if "id" in fields else ""
        return cls(request_id, metric, value, label, id_)


def parse_lines(raw: bytes) -> list[Feedback]:
    """From JSON lines, of which empty ones are left out. Raises ApiError (400), naming the line."""
    found = []
    for number, line in _lines(raw):
        where = f"line {number}"
        try:
            given = json.loads(line)
        except (ValueError, RecursionError) as error:
            message = f"{where} is no JSON: {line[:80].decode(errors='replace')!r}"
            raise ApiError(400, message, "invalid_json", where) from error
        found.append(Feedback.parse(given, where))
        if len(found) > MAX_LINES:
            message = f"more than {MAX_LINES} lines; send them in several requests"
            raise ApiError(400, message, "too_many_lines")
    if not found:
        raise ApiError(400, "there is no line of feedback", "invalid_parameter")
    return found


def _number(fields: Fields) -> float:
    value = fields.number("value", -MAX_VALUE, MAX_VALUE)
    return value if abs(value) >= MIN_VALUE else 0.0


def _lines(raw: bytes) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(raw.split(b"\n"), 1):
        if line.strip():
            yield number, line
