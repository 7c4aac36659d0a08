"""The usage that the gateway asks for at the end of each stream, hidden from whoever did not. Pure.

vLLM writes its fingerprint into the usage instead of the last event of a choice; it is put back, so
that the client sees, byte for byte, the stream that it would have got.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from outfitter.engine.meter import ERROR_EVENT, USAGE_KEY, is_bare_usage

STREAM_OPTIONS = "stream_options"
INCLUDE_USAGE = "include_usage"
CONTINUOUS = "continuous_usage_stats"
_FINISH = b'"finish_reason":"'
_DONE = b"data: [DONE]"
_FINGERPRINT = b'"system_fingerprint"'
_VALUE = re.compile(rb'"system_fingerprint"\s*:\s*("(?:[^"\\]|\\.)*")')


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


@dataclass
class Fingerprint:
    """What an engine says of itself, as JSON; empty if it says nothing, None until it is known."""

    value: bytes | None = None

    def learn(self, event: bytes) -> None:
        """Read it in the event that holds the usage."""
        found = _VALUE.search(event)
        self.value = found[1] if found else b""

    def stamp(self, event: bytes) -> bytes:
        """The last event of a choice with the fingerprint at its end."""
        if not self.value:
            return event
        head, brace, tail = event.rpartition(b"}")
        return head + b"," + _FINGERPRINT + b":" + self.value + brace + tail


class HiddenUsage:
    """Takes the usage out of the whole lines of one stream.

    Until the fingerprint of the engine is known, the last event of a choice waits for the usage,
    which follows at once unless further choices are still being written.
    """

    def __init__(self, fingerprint: Fingerprint) -> None:
        self._fingerprint = fingerprint
        self._held: list[bytes] = []
        self._skips_blank = False

    def feed(self, lines: bytes) -> bytes:
        """What the client is to see."""
        is_busy = self._held or self._skips_blank
        if not is_busy and _FINISH not in lines and USAGE_KEY not in lines:
            return lines
        return b"".join(map(self._seen, lines.splitlines(keepends=True)))

    def release(self) -> bytes:
        """The events that still wait, for a stream that ends without a usage."""
        held, self._held = self._held, []
        return b"".join(map(self._fingerprint.stamp, held))

    def _seen(self, line: bytes) -> bytes:
        is_blank, self._skips_blank = self._skips_blank and line == b"\n", False
        if is_blank:
            return b""
        if is_bare_usage(line):
            self._skips_blank = True
            self._fingerprint.learn(line)
            return self.release()
        if line.startswith((_DONE, ERROR_EVENT)):
            return self.release() + line
        if _FINISH not in line or _FINGERPRINT in line:
            return line
        if self._fingerprint.value is not None:
            return self._fingerprint.stamp(line)
        self._skips_blank = True
        self._held.append(line + b"\n")
        return b""
