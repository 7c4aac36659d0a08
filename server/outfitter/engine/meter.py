"""What an answer tells of itself while it passes: when tokens came, and its usage. Pure.

Streams are looked at a chunk at a time, by searching bytes; only what holds a usage is parsed. A
JSON string cannot hold a bare quote or line end, so what is searched for is never text of a model.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from outfitter.control.outcome import Outcome

_DATA, _NEXT_DATA = b"data: {", b"\ndata: {"
_EVENT = b"event: "
_DELTA_ENDS = (b".delta\n", b"_block_delta\n")
"""Of the names of events that bring tokens, in the Responses API and in Anthropic's."""
ERROR_EVENT = b'data: {"error"'
_TYPED_ERROR = b'data: {"type": "error"'
_DONE, _NEXT_DONE = b"data: [DONE]", b"\ndata: [DONE]"
_TYPED_ENDS = tuple(
    b"event: %s\n" % name
    for name in (b"response.completed", b"response.incomplete", b"response.failed", b"message_stop")
)
USAGE_KEY = b'"usage"'
_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_ROLE, _EMPTY = b'"role":', b'"content":""'
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Usage:
    """Tokens as the engine counted them; `cached` are among those of the prompt."""

    prompt: int
    cached: int
    completion: int


def usage_of(body: bytes) -> Usage | None:
    """The last `usage` object in the JSON `body`, in the words of any of OpenAI's APIs."""
    start = max((match.end() for match in _USAGE.finditer(body)), default=None)
    if start is None:
        return None
    try:
        fields, _ = _DECODER.raw_decode(body[start:].decode())
    except (ValueError, RecursionError):
        return None
    return _usage(fields)


def usage_in_event(line: bytes) -> Usage | None:
    """That of an event's data, where its API has it: deeper ones may be the client's own words."""
    try:
        fields = json.loads(line.partition(b":")[2])
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    holders = (fields, fields.get("response"), fields.get("message"))
    found = (one.get("usage") for one in holders if isinstance(one, dict))
    return next((_usage(one) for one in found if isinstance(one, dict)), None)


def _usage(fields: Mapping[str, object]) -> Usage:
    prompt = _count(fields, "prompt_tokens") or _count(fields, "input_tokens")
    completion = _count(fields, "completion_tokens") or _count(fields, "output_tokens")
    details = fields.get("prompt_tokens_details") or fields.get("input_tokens_details")
    return Usage(prompt, _count(details, "cached_tokens"), completion)


class StreamMeter:
    """Sees the whole lines of one stream of server-sent events, and changes nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: float | None = None
        self._last: float | None = None
        self._num_events = 0
        self._has_types = False
        self._usage: bytes | None = None
        self.has_failed = False
        """Whether the engine sent an error as its last event."""
        self.has_ended = False
        """Whether the engine said that this was all, be it with an error."""

    def feed(self, lines: bytes) -> None:
        """Look at some whole lines that have just come."""
        count = lines.count(_NEXT_DATA) + lines.startswith(_DATA)
        if self._has_types or lines.startswith(_EVENT):
            self._has_types = True
            count = sum(map(lines.count, _DELTA_ENDS))
        if USAGE_KEY in lines:
            count -= self._note_usage(lines)
        if ERROR_EVENT in lines or (self._has_types and _TYPED_ERROR in lines):
            self.has_failed = self.has_ended = True
            count -= not self._has_types
        self.has_ended = self.has_ended or self._says_end(lines)
        if self._first is None and count > 0:
            count -= _num_roles(lines)
        if count > 0:
            self._last = self._clock()
            self._first = self._last if self._first is None else self._first
            self._num_events += count

    def tell(self, outcome: Outcome) -> None:
        """Write down what was seen so far."""
        outcome.first_token, outcome.last_token = self._first, self._last
        outcome.num_events = outcome.completion_tokens = self._num_events
        if self._usage is not None and (usage := usage_in_event(self._usage)) is not None:
            note_usage(outcome, usage)

    def _says_end(self, lines: bytes) -> bool:
        if self._has_types:
            return any(name in lines for name in _TYPED_ENDS)
        return _NEXT_DONE in lines or lines.startswith(_DONE)

    def _note_usage(self, lines: bytes) -> int:
        """Keep the last usage; returns how many events bring no token but a usage."""
        told = [line for line in lines.splitlines() if _USAGE.search(line)]
        self._usage = told[-1] if told else self._usage
        return sum(map(is_bare_usage, told))


def note_usage(outcome: Outcome, usage: Usage) -> None:
    """Write down what the engine counted."""
    outcome.prompt_tokens = usage.prompt
    outcome.cached_tokens = usage.cached
    outcome.completion_tokens = usage.completion


def is_bare_usage(line: bytes) -> bool:
    """Whether an event holds a usage and no choice."""
    if USAGE_KEY not in line or not _NO_CHOICES.search(line):
        return False
    try:
        fields = json.loads(line[len(_DATA) - 1 :])
    except (ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and fields.get("choices") == []


def _num_roles(lines: bytes) -> int:
    """Events that only say who speaks: chat begins with one for each choice."""
    if _EMPTY not in lines:
        return 0
    return sum(_ROLE in line and _EMPTY in line for line in lines.split(b"\n"))


def _count(fields: object, name: str) -> int:
    """A number of tokens; 0 where there is none."""
    value = fields.get(name) if isinstance(fields, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
