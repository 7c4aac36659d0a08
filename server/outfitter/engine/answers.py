"""What experiments want to know of an answer while it passes: why it ended, and its text. Pure.

Only requests of experiments are read so. Of several choices, the first one's text counts.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

MAX_TEXT = 64 * 2**10
"""Characters; of a longer answer there is no text."""
_REASON = re.compile(rb'"(?:finish_reason|stop_reason)":\s?"(\w{1,64})"')
_INCOMPLETE = re.compile(rb'"incomplete_details"\s*:\s*\{\s*"reason"\s*:\s*"(\w{1,64})"')
_COMPLETED = re.compile(rb'"type"\s*:\s*"response\.completed"|"status"\s*:\s*"completed"')
_RESPONSE = re.compile(rb'"object"\s*:\s*"response"')
_WORDS = {
    "max_tokens": "length",
    "max_output_tokens": "length",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
}
"""Anthropic's and those of the Responses API, in OpenAI's."""


class AnswerReader:
    """Sees the whole lines of a stream, or a whole body.

    wants_text: whether the text is kept; it then costs parsing every event.
    """

    def __init__(self, *, wants_text: bool) -> None:
        self._wants_text = wants_text
        self._parts: list[str] = []
        self._size = 0
        self.finish_reason: str | None = None

    def feed(self, lines: bytes) -> None:
        """Look at some whole lines of a stream."""
        self._note_reason(lines)
        if not self._wants_text:
            return
        for line in lines.split(b"\n"):
            if line.startswith(b"data:") and (fields := _object(line[5:])) is not None:
                self._keep(_of_event(fields))

    def whole(self, body: bytes) -> None:
        """Look at a whole answer."""
        self._note_reason(body)
        if self._wants_text and (fields := _object(body)) is not None:
            self._keep("".join(_of_body(fields)))

    @property
    def text(self) -> str | None:
        """Of the answer so far; None where it is not wanted, or too long."""
        return "".join(self._parts) if self._wants_text else None

    def _keep(self, text: str) -> None:
        self._size += len(text)
        self._parts.append(text)
        if self._size > MAX_TEXT:
            self._wants_text, self._parts = False, []

    def _note_reason(self, raw: bytes) -> None:
        if b'_reason":"' in raw or b'_reason": "' in raw:
            for match in _REASON.finditer(raw):
                self._reason(match[1])
        if b'"response"' in raw and _RESPONSE.search(raw):
            if incomplete := _INCOMPLETE.search(raw):
                self._reason(incomplete[1])
            elif _COMPLETED.search(raw):
                self._reason(b"stop")

    def _reason(self, word: bytes) -> None:
        told = word.decode()
        self.finish_reason = _WORDS.get(told, told)


def _object(raw: bytes) -> Mapping[str, Any] | None:
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _of_event(fields: Mapping[str, Any]) -> str:
    """The text that an event of any API adds."""
    for choice in _objects(fields.get("choices")):
        if choice.get("index") == 0:
            delta = choice.get("delta")
            return _text(delta.get("content") if isinstance(delta, dict) else choice.get("text"))
    delta = fields.get("delta")
    if fields.get("type") == "response.output_text.delta":
        return _text(delta)
    if fields.get("type") == "content_block_delta" and isinstance(delta, dict):
        return _text(delta.get("text"))
    return ""


def _of_body(fields: Mapping[str, Any]) -> Iterator[str]:
    """The texts of a whole answer of any API."""
    for choice in _objects(fields.get("choices")):
        if choice.get("index", 0) == 0:
            message = choice.get("message")
            yield _text(message.get("content") if isinstance(message, dict) else choice.get("text"))
            return
    parts = [fields, *_objects(fields.get("output"))]
    for part in parts:
        for piece in _objects(part.get("content")):
            yield _text(piece.get("text"))


def _objects(value: object) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, dict))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
