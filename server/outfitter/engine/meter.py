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

STREAM_OPTIONS = "stream_options"
INCLUDE_USAGE = "include_usage"
CONTINUOUS = "continuous_usage_stats"
_DATA, _NEXT_DATA = b"data: {", b"\ndata: {"
_EVENT, _DELTA_END = b"event: ", b".delta\n"
_ERROR = b'data: {"error"'
_KEY = b'"usage"'
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


def with_usage(fields: Mapping[str, object]) -> tuple[Mapping[str, object], bool]:
    """A request whose stream ends with its usage, and whether the client must not see that.

    What the engine would refuse stays as it is, and so does what the client asked for itself.
    """
    options = fields.get(STREAM_OPTIONS)
    if fields.get("stream") is not True or not isinstance(options, Mapping | None):
        return fields, False
    given = dict(options or {})
    is_asked, is_continuous = given.get(INCLUDE_USAGE), given.pop(CONTINUOUS, None)
    if is_asked not in (None, False) or not isinstance(is_continuous, bool | None):
        return fields, False
    return {**fields, STREAM_OPTIONS: {**given, INCLUDE_USAGE: True}}, True


def usage_of(body: bytes) -> Usage | None:
    """The last `usage` object in the JSON `body`, in the words of any of OpenAI's APIs."""
    start = max((match.end() for match in _USAGE.finditer(body)), default=None)
    if start is None:
        return None
    try:
        fields, _ = _DECODER.raw_decode(body[start:].decode())
    except (ValueError, RecursionError):
        return None
    prompt = _count(fields, "prompt_tokens") or _count(fields, "input_tokens")
    completion = _count(fields, "completion_tokens") or _count(fields, "output_tokens")
    details = fields.get("prompt_tokens_details") or fields.get("input_tokens_details")
    return Usage(prompt, _count(details, "cached_tokens"), completion)


class StreamMeter:
    """Sees the whole lines of one stream of server-sent events, as they are sent.

    hides_usage: the client did not ask for the last event, which holds nothing but the usage.
    """

    def __init__(self, hides_usage: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._hides_usage = hides_usage
        self._clock = clock
        self._first: float | None = None
        self._last: float | None = None
        self._num_events = 0
        self._has_types = False
        self._usage: bytes | None = None
        self._skips_blank = False
        self.has_failed = False
        """Whether the engine sent an error as its last event."""

    def feed(self, lines: bytes) -> bytes:
        """What the client is to see of some whole lines."""
        if self._skips_blank:
            self._skips_blank = False
            lines = lines.removeprefix(b"\n")
        count = lines.count(_NEXT_DATA) + lines.startswith(_DATA)
        if self._has_types or lines.startswith(_EVENT):
            self._has_types = True
            count = lines.count(_DELTA_END)
        if _KEY in lines:
            lines, num_bare = self._note_usage(lines)
            count -= num_bare
        if _ERROR in lines:
            self.has_failed = True
            count -= 1
        if self._first is None and count > 0:
            count -= _num_roles(lines)
        if count > 0:
            self._last = self._clock()
            self._first = self._last if self._first is None else self._first
            self._num_events += count
        return lines

    def tell(self, outcome: Outcome) -> None:
        """Write down what was seen so far."""
        outcome.first_token, outcome.last_token = self._first, self._last
        outcome.num_events = outcome.completion_tokens = self._num_events
        if self._usage is not None and (usage := usage_of(self._usage)) is not None:
            note_usage(outcome, usage)

    def _note_usage(self, lines: bytes) -> tuple[bytes, int]:
        """The lines to pass on, and how many events have no token but a usage."""
        kept: list[bytes] = []
        num_bare, skips = 0, False
        for line in lines.splitlines(keepends=True):
            is_blank, skips = skips and line == b"\n", False
            if is_blank:
                continue
            if _USAGE.search(line):
                self._usage = line
                is_bare = _is_bare(line)
                num_bare += is_bare
                if skips := is_bare and self._hides_usage:
                    continue
            kept.append(line)
        self._skips_blank = skips
        return b"".join(kept), num_bare


def note_usage(outcome: Outcome, usage: Usage) -> None:
    """Write down what the engine counted."""
    outcome.prompt_tokens = usage.prompt
    outcome.cached_tokens = usage.cached
    outcome.completion_tokens = usage.completion


def _is_bare(line: bytes) -> bool:
    """Whether an event holds a usage and no choice."""
    if not _NO_CHOICES.search(line):
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
