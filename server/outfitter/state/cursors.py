"""Cursors: where a page ended, as text that only the same question accepts."""

import base64
import hashlib
import json
from binascii import Error as BinasciiError
from collections.abc import Sequence

from outfitter.errors import InvalidDetails

Position = Sequence[str | int]
_MAX_CURSOR = 2048
_CHECK = 12


def to_cursor(question: object, position: Position) -> str:
    """The end of a page of answers to a question, which is anything that JSON can say."""
    text = json.dumps([_check(question, position), *position])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def from_cursor(question: object, cursor: str, kinds: Sequence[type]) -> list[str | int]:
    """The inverse; kinds: of the position's parts. Raises InvalidDetails for any other text."""
    try:
        if len(cursor) > _MAX_CURSOR:
            raise ValueError("too long")
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        position: list[str | int]
        check, *position = json.loads(base64.b64decode(padded, b"-_", validate=True))
        if check != _check(question, position) or [type(part) for part in position] != [*kinds]:
            raise ValueError("not of this question")
    except (ValueError, TypeError, BinasciiError, RecursionError) as error:
        raise InvalidDetails(
            f"invalid cursor {cursor[:80]!r}: use `after` of the page before, with the same query"
        ) from error
    return position


def _check(question: object, position: Position) -> str:
    text = json.dumps([question, *position], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_CHECK]
