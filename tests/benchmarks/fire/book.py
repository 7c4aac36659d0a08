"""The books of the clients: one ending for every request that was sent, and what may not be."""

import enum
from collections import Counter
from dataclasses import dataclass, field


class End(enum.Enum):
    """How a request ended; exactly one of these."""

    ANSWERED = "answered"
    REFUSED = "refused"
    CUT = "told in its stream"
    LEFT = "left"
    NOT_TAKEN = "not taken after SIGTERM"
    BROKEN = "broken"
    HUNG = "hung"


WRONG = (End.BROKEN, End.HUNG)
RELAYED_STATUSES = {200, 429, 502, 503}
"""Of a request to the engine. Beyond these: 400 and 404 where they were asked for."""
PUBLISHED_STATUSES = {201, 409, 429, 503}
RETRIED = {429, 502, 503}
"""Statuses that say when to come back."""
CUT_CODES = {"engine_died", "shutting_down"}
MAX_TOLD = 50


@dataclass(frozen=True)
class Ending:
    """end, and what was said: a status and a code. was_heard: an answer had begun."""

    end: End
    status: int = 0
    code: str = ""
    was_heard: bool = False
    tokens: int = 0
    """Of prompt and answer, where the client was told."""
    detail: str = ""


@dataclass
class Book:
    """What clients sent and got, by tenant; the problems are what must not have been."""

    sent: Counter[str] = field(default_factory=Counter)
    relayed: Counter[str] = field(default_factory=Counter)
    """Requests to the engine whose answer, or its beginning, was heard: each is counted once."""
    unheard: Counter[str] = field(default_factory=Counter)
    """Those left, or not taken, before anything was heard: counted once or not at all."""
    served: Counter[str] = field(default_factory=Counter)
    """Those of them that were answered with 200, be it to the end or not: a loadout was used."""
    tokens: Counter[str] = field(default_factory=Counter)
    ends: Counter[tuple[str, str, int, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    num_problems: int = 0
    longest_s: float = 0.0
    """From sending to the ending, of those that did not leave."""

    def relay(
        self, tenant: str, kind: str, allowed: set[int], ending: Ending, seconds: float
    ) -> None:
        """Write down a request to the engine that has ended."""
        if ending.was_heard:
            self.relayed[tenant] += 1
        else:
            self.unheard[tenant] += 1
        self.served[tenant] += ending.end in (End.ANSWERED, End.CUT)
        self.tokens[tenant] += ending.tokens
        self._close(tenant, kind, RELAYED_STATUSES | allowed, ending, seconds)

    def publish(self, tenant: str, kind: str, ending: Ending, seconds: float) -> None:
        """Write down a request that changes the catalog."""
        self._close(tenant, kind, PUBLISHED_STATUSES, ending, seconds)

    def problem(self, text: str) -> None:
        """Something that must not be; the first ones are kept in words."""
        self.num_problems += 1
        if len(self.problems) < MAX_TOLD:
            self.problems.append(text)

    def by_end(self) -> dict[str, int]:
        """How many requests ended how."""
        found: Counter[str] = Counter()
        for (_, end, _, _), count in self.ends.items():
            found[end] += count
        return dict(found)

    def by_kind(self) -> dict[str, dict[str, int]]:
        """The same for each kind of request, with status and code."""
        found: dict[str, dict[str, int]] = {}
        for (kind, end, status, code), count in sorted(self.ends.items()):
            label = " ".join(filter(None, (end, str(status or ""), code)))
            found.setdefault(kind, {})[label] = count
        return found

    def _close(
        self, tenant: str, kind: str, allowed: set[int], ending: Ending, seconds: float
    ) -> None:
        self.sent[tenant] += 1
        self.ends[kind, ending.end.value, ending.status, ending.code] += 1
        if ending.end is not End.LEFT:
            self.longest_s = max(self.longest_s, seconds)
        is_wrong = ending.end in WRONG or (ending.status and ending.status not in allowed)
        if is_wrong:
            self.problem(f"{kind} of {tenant} after {seconds:.1f} s: {ending}")
