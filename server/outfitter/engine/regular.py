"""Events that all begin alike, as vLLM writes a stream: renamed many at a time. Pure."""

import re
from dataclasses import dataclass

_HEAD = re.compile(
    rb'data: \{(?:"(?:id|object|created)":(?:"[^"\\]*"|\d+),)*"model":"(?:[^"\\]|\\.)*"'
)
_END = b"\n\n"


def head_of(line: bytes) -> bytes | None:
    """Where an event begins as vLLM's do: up to its model's name, which is at the top level.

    None for any other line.
    """
    match = _HEAD.match(line)
    return None if match is None else match[0]


@dataclass(frozen=True)
class RegularEvents:
    """Puts `new` where events begin with `old`, in blocks that hold nothing else.

    A line end is never inside JSON, so `old` after one is always the beginning of an event, and
    never something that a model wrote.
    """

    old: bytes
    new: bytes

    def rename(self, block: bytes) -> bytes | None:
        """A block of whole events, renamed; None if it is not regular.

        It is when all line ends are in pairs, an `old` follows each pair but the last, and one
        stands before all: then every line is empty or begins with `old`.
        """
        if not (block.startswith(self.old) and block.endswith(_END)):
            return None
        num_events = block.count(_END)
        if block.count(b"\n") != 2 * num_events:
            return None
        if block.count(_END + self.old) != num_events - 1:
            return None
        if self.new == self.old:
            return block
        if num_events == 1:
            return self.new + block[len(self.old) :]
        return self.new + block[len(self.old) :].replace(_END + self.old, _END + self.new)
