"""The ledger: which vectors are in the pool, who uses them, and what goes out. Pure, no I/O.

One ledger in the API server decides for the worker's pool, because vLLM's scheduler counts slots
and not bytes: a request reaches the engine only when all its vectors have been reserved. Where
several tenants are active, `shares` says whose vectors go out; else the least recently used do.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from taskvectors.errors import PoolTooSmall
from taskvectors.vllm_plugin.shares import Division, Entry, Shares, Size
from taskvectors.vllm_plugin.tenant import Tenant


@dataclass(frozen=True)
class Reservation:
    """The entries that a request holds, and what the worker must do first.

    tag: of the tenant that it counts for, if any.
    """

    entries: tuple[Entry, ...]
    load: Mapping[str, int]
    evict: tuple[str, ...]
    tag: str | None = None


class Ledger:
    """A byte budget and a number of columns; entries in use are never evicted. clock: seconds."""

    def __init__(
        self,
        pool_bytes: int,
        max_vectors: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool_bytes = pool_bytes
        self._max_vectors = max_vectors
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._shares = Shares(Size(pool_bytes, max_vectors), clock)
        self._free_columns = list(range(max_vectors - 1, -1, -1))

    @property
    def used_bytes(self) -> int:
        """Bytes of all entries."""
        return sum(entry.nbytes for entry in self._entries.values())

    @property
    def num_vectors(self) -> int:
        """How many entries there are."""
        return len(self._entries)

    @property
    def free(self) -> tuple[int, int]:
        """Bytes and columns that no entry takes."""
        return self._pool_bytes - self.used_bytes, len(self._free_columns)

    def fits(self, needs: Mapping[str, int]) -> bool:
        """Whether `needs` can be held without an eviction."""
        missing = [digest for digest in needs if digest not in self._entries]
        more_bytes = sum(needs[digest] for digest in missing)
        has_bytes = self.used_bytes + more_bytes <= self._pool_bytes
        return has_bytes and len(missing) <= len(self._free_columns)

    def entry(self, digest: str) -> Entry | None:
        """The entry of a vector, if it is in the pool."""
        return self._entries.get(digest)

    def reserve(
        self, needs: Mapping[str, int], tenant: Tenant | None = None, *, force: bool = False
    ) -> Reservation | None:
        """Hold the vectors of `needs` (digest → bytes); None when others leave no room.

        tenant: whom they count for; nobody by default. force: what is not in use leaves, though it
        be protected. Raises PoolTooSmall when they would not fit an empty pool.
        """
        self.check_fits(needs)
        if tenant is not None:
            self._shares.ask(tenant)
            if not force and self._must_yield(needs, tenant):
                return None
        missing = [digest for digest in needs if digest not in self._entries]
        more = sum(needs[digest] for digest in missing), len(missing)
        victims = self._victims(needs, *more, None if tenant is None else tenant.tag, force)
        if victims is None:
            return None
        for victim in victims:
            self.drop(victim)
        load = {digest: self._add(digest, needs[digest]) for digest in missing}
        entries = tuple(self._entries[digest] for digest in needs)
        for entry in entries:
            entry.users += 1
            if tenant is not None:
                self._shares.own(entry, tenant.tag)
            self._entries.move_to_end(entry.digest)
        tag = None if tenant is None else tenant.tag
        if tag is not None:
            self._shares.begin(tag)
        return Reservation(entries, load, tuple(victim.digest for victim in victims), tag)

    def release(self, reservation: Reservation) -> None:
        """Let go of what `reserve` returned; the vectors stay until their room is needed."""
        for entry in reservation.entries:
            entry.users -= 1
        if reservation.tag is not None:
            self._shares.end(reservation.tag)

    def is_running(self, tenant: Tenant | None) -> bool:
        """Whether a request of the tenant holds vectors."""
        return tenant is not None and self._shares.is_running(tenant.tag)

    def exceeds_share(self, needs: Mapping[str, int], tenant: Tenant | None) -> bool:
        """Whether what is in use of the tenant's, and `needs`, are more than its share."""
        if tenant is None:
            return False
        self._shares.ask(tenant)
        if not self._shares.is_shared:
            return False
        in_use = [entry for entry in self._entries.values() if entry.users or entry.digest in needs]
        division = self._shares.division(in_use, needs, tenant.tag)
        missing = [digest for digest in needs if digest not in self._entries]
        more = sum(needs[digest] for digest in missing), len(missing)
        return division.is_over(tenant.tag, *more)

    def division(self) -> Division:
        """What every active tenant holds now."""
        return self._shares.division(self._entries.values(), (), "")

    def drop(self, entry: Entry) -> None:
        """Take an entry out, in use or not: its room is needed, or the worker gave it up."""
        if self._entries.get(entry.digest) is entry:
            del self._entries[entry.digest]
            self._free_columns.append(entry.column)

    def forget(self, entry: Entry) -> None:
        """Like `drop`, but the column stays taken: nobody knows what the worker has in it."""
        if self._entries.get(entry.digest) is entry:
            del self._entries[entry.digest]

    def check_fits(self, needs: Mapping[str, int]) -> None:
        """Raises PoolTooSmall when `needs` would not fit an empty pool."""
        total = sum(needs.values())
        if total > self._pool_bytes:
            raise PoolTooSmall(
                f"the loadout's vectors take {total} bytes on the device and the pool has"
                f" {self._pool_bytes}; use fewer vectors or a larger --pool-bytes"
            )
        if len(needs) > self._max_vectors:
            raise PoolTooSmall(
                f"the loadout has {len(needs)} vectors and the pool holds {self._max_vectors}"
            )

    def _must_yield(self, needs: Mapping[str, int], tenant: Tenant) -> bool:
        """Whether the tenant would use more than its share of which another lacks."""
        if not self._shares.is_hungry_beside(tenant.tag):
            return False
        entries = [self._entries.get(digest) for digest in needs]
        uses_more = not all(entry is not None and entry.users for entry in entries)
        return uses_more and self.exceeds_share(needs, tenant)

    def _victims(
        self,
        needs: Mapping[str, int],
        more_bytes: int,
        more_columns: int,
        tag: str | None,
        force: bool,
    ) -> list[Entry] | None:
        """The idle entries to evict; None when they do not suffice."""
        if tag is None or not self._shares.is_shared:
            return self._enough(self._idle(needs), more_bytes, more_columns)
        division = self._shares.division(self._entries.values(), needs, tag)
        is_squeezed = division.is_squeezed(more_bytes, more_columns)
        idle = division.victims(self._idle(needs), more_bytes, more_columns, force=force)
        victims = self._enough(idle, more_bytes, more_columns)
        is_hungry = victims is None or any(tag in victim.owners for victim in victims)
        self._shares.feed(tag, is_hungry=is_squeezed and is_hungry)
        return victims

    def _idle(self, needs: Mapping[str, int]) -> Iterator[Entry]:
        """What nobody uses or needs, least recently used first."""
        for entry in self._entries.values():
            if entry.users == 0 and entry.digest not in needs:
                yield entry

    def _enough(
        self, idle: Iterable[Entry], more_bytes: int, more_columns: int
    ) -> list[Entry] | None:
        """As many of `idle` as make the room; None when all do not."""
        excess = self.used_bytes + more_bytes - self._pool_bytes
        columns = more_columns - len(self._free_columns)
        victims: list[Entry] = []
        for entry in idle:
            if excess <= 0 and columns <= 0:
                break
            victims.append(entry)
            excess -= entry.nbytes
            columns -= 1
        return victims if excess <= 0 and columns <= 0 else None

    def _add(self, digest: str, nbytes: int) -> int:
        column = self._free_columns.pop()
        self._entries[digest] = Entry(digest, column, nbytes)
        return column
