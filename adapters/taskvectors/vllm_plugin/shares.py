"""Shares: what of the pool each tenant holds, and whose vectors go out for whom. Pure, no I/O.

A tenant is active while a request of it runs, waits, or did so lately; the pool is divided among
the active ones. A vector counts for its active owners in equal parts: the tenants that have used it
since it came in. It is protected while one of them, other than who wants the room, holds no more
than its share.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from taskvectors.vllm_plugin.tenant import Tenant

ACTIVE_S = 60.0
"""A tenant counts as active for so long after its last request."""
HUNGRY_S = 5.0
"""Who lacks lent room holds the borrowers to their shares for so long."""
MAX_OWNERS = 256
"""Beyond so many, those of an entry that are not active are forgotten."""
_ROUNDING = 1e-9


@dataclass
class Entry:
    """One vector in the pool. `users` counts the requests that hold it; `owners` are tags."""

    digest: str
    column: int
    nbytes: int
    users: int = 0
    owners: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Size:
    """Room: bytes and columns."""

    nbytes: float = 0.0
    columns: float = 0.0

    def plus(self, nbytes: float, columns: float) -> "Size":
        """So much larger."""
        return Size(self.nbytes + nbytes, self.columns + columns)

    def times(self, factor: float) -> "Size":
        """A part of it."""
        return Size(self.nbytes * factor, self.columns * factor)

    def exceeds(self, other: "Size") -> bool:
        """Whether it is larger in bytes or in columns."""
        more = self.nbytes - other.nbytes, self.columns - other.columns
        return max(more) > _ROUNDING


def parts_of(shares: Mapping[str, float | None]) -> dict[str, float]:
    """What part of the pool each active tenant has; together 1.

    Those without an explicit share divide evenly what the explicit ones leave. Where these leave
    or take too much, all grow or shrink together: idle room is lent, and given back.
    """
    explicit = {tag: share for tag, share in shares.items() if share is not None}
    rest = max(0.0, 1.0 - sum(explicit.values()))
    others = len(shares) - len(explicit)
    parts = {tag: explicit[tag] if tag in explicit else rest / others for tag in shares}
    total = sum(parts.values())
    return {tag: part / total if total else 1 / len(parts) for tag, part in parts.items()}


class Shares:
    """The tenants of a pool of a size. clock: seconds."""

    def __init__(self, pool: Size, clock: Callable[[], float]) -> None:
        self._pool = pool
        self._clock = clock
        self._seen: dict[str, float] = {}
        self._share: dict[str, float | None] = {}
        self._running: dict[str, int] = {}
        self._hungry: dict[str, float] = {}

    def ask(self, tenant: Tenant) -> None:
        """A request of the tenant is here."""
        self._seen[tenant.tag] = self._clock()
        self._share[tenant.tag] = tenant.share

    def begin(self, tag: str) -> None:
        """A request runs."""
        self._running[tag] = self._running.get(tag, 0) + 1

    def end(self, tag: str) -> None:
        """A request has ended."""
        self._running[tag] -= 1
        if not self._running[tag]:
            del self._running[tag]
        self._seen[tag] = self._clock()

    def is_running(self, tag: str) -> bool:
        """Whether a request runs."""
        return tag in self._running

    def is_hungry_beside(self, tag: str) -> bool:
        """Whether another tenant lately lacked room that is its own and was lent."""
        oldest = self._clock() - HUNGRY_S
        return any(other != tag and since >= oldest for other, since in self._hungry.items())

    def feed(self, tag: str, *, is_hungry: bool) -> None:
        """Note whether a tenant lacks such room now."""
        self._hungry.pop(tag, None)
        if is_hungry:
            self._hungry[tag] = self._clock()

    def active(self) -> dict[str, float | None]:
        """The explicit share, or None, of every active tenant; forgets the others."""
        oldest = self._clock() - ACTIVE_S
        idle = [tag for tag, seen in self._seen.items() if seen < oldest]
        for tag in idle:
            if tag not in self._running:
                del self._seen[tag], self._share[tag]
                self._hungry.pop(tag, None)
        return dict(self._share)

    @property
    def is_shared(self) -> bool:
        """Whether several tenants are active."""
        return len(self._share) > 1 and len(self.active()) > 1

    def own(self, entry: Entry, tag: str) -> None:
        """A request of the tenant holds the entry."""
        if len(entry.owners) >= MAX_OWNERS:
            entry.owners &= self.active().keys()
        entry.owners.add(tag)

    def division(self, entries: Collection[Entry], needs: Collection[str], tag: str) -> "Division":
        """Who holds what, as if `tag` owned the entries among its `needs` already."""
        return Division(self._pool, self.active(), entries, needs, tag)


class Division:
    """The pool as it is divided at one moment, seen by a tenant that wants room."""

    def __init__(
        self,
        pool: Size,
        active: Mapping[str, float | None],
        entries: Collection[Entry],
        needs: Collection[str],
        tag: str,
    ) -> None:
        self.tag = tag
        self.parts = parts_of(active)
        self._needs = needs
        pinned = [e for e in entries if e.users and not self._owners(e)]
        self._room = pool.plus(-sum(e.nbytes for e in pinned), -len(pinned))
        self._held = dict.fromkeys(self.parts, Size())
        for entry in entries:
            self._count(entry, 1)

    def held(self, tag: str) -> Size:
        """What an active tenant holds."""
        return self._held[tag]

    def share(self, tag: str) -> Size:
        """What it may hold: its part of what is not pinned."""
        return self._room.times(self.parts[tag])

    def is_over(self, tag: str, nbytes: float = 0.0, columns: float = 0.0) -> bool:
        """Whether it holds more than its share, with so much more."""
        return self._held[tag].plus(nbytes, columns).exceeds(self.share(tag))

    def is_squeezed(self, nbytes: float, columns: float) -> bool:
        """Whether so much more is within its share, while another holds more than its."""
        others = (tag for tag in self.parts if tag != self.tag)
        return not self.is_over(self.tag, nbytes, columns) and any(map(self.is_over, others))

    def victims(
        self, idle: Iterable[Entry], nbytes: int, columns: int, *, force: bool
    ) -> Iterator[Entry]:
        """Entries to put out, as long as room for so much more is wanted.

        idle: what nobody uses, least recently used first. Once the tenant holds more than its
        share, its own come first, else what nobody protects. force: at last what is protected.
        """
        left = list(idle)
        while left:
            entry = self._next(left, nbytes, columns)
            if entry is None:
                if not force:
                    return
                entry = left[0]
            left.remove(entry)
            self._count(entry, -1)
            yield entry

    def _next(self, left: list[Entry], nbytes: int, columns: int) -> Entry | None:
        open_ = [entry for entry in left if not self._is_protected(entry)]
        own = [entry for entry in open_ if self.tag in entry.owners]
        others = [entry for entry in open_ if self.tag not in entry.owners]
        first, second = (own, others) if self.is_over(self.tag, nbytes, columns) else (others, own)
        return next(iter([*first, *second]), None)

    def _is_protected(self, entry: Entry) -> bool:
        return any(not self.is_over(tag) for tag in self._owners(entry) if tag != self.tag)

    def _owners(self, entry: Entry) -> set[str]:
        """The active ones."""
        owners = entry.owners & self.parts.keys()
        return owners | {self.tag} if entry.digest in self._needs else owners

    def _count(self, entry: Entry, sign: int) -> None:
        owners = self._owners(entry)
        for tag in owners:
            more = sign * entry.nbytes / len(owners), sign / len(owners)
            self._held[tag] = self._held[tag].plus(*more)
