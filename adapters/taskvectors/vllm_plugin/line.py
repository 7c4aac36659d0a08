"""The line of requests that wait for room: in turn by tenant, first come first served in each."""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from taskvectors.errors import PoolBusy
from taskvectors.vllm_plugin.tenant import UNTAGGED, Tenant


@dataclass(frozen=True, eq=False)
class Waiter:
    """A request that waits for room: `held` is set when it gets it. tenant: None is nobody's."""

    needs: Mapping[str, int]
    since: float
    held: "asyncio.Future[Any]"
    tenant: Tenant | None = UNTAGGED

    @property
    def tag(self) -> str:
        """In whose line it waits."""
        return UNTAGGED.tag if self.tenant is None else self.tenant.tag


class Line:
    """At most `most` requests; a tenant that has more places than others makes room for them.

    clock: seconds, the same as of `Waiter.since`.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._first_since: dict[str, float] = {}
        self._tenants: OrderedDict[str, deque[Waiter]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def num_tenants(self) -> int:
        """How many have somebody waiting."""
        return len(self._tenants)

    @property
    def oldest(self) -> Waiter | None:
        """Who has waited longest."""
        return min(self.heads(), key=lambda turn: turn.since, default=None)

    def heads(self) -> list[Waiter]:
        """The first of each tenant; whose turn it is comes first."""
        return [waiting[0] for waiting in self._tenants.values()]

    def first_since(self, turn: Waiter) -> float:
        """When the first of a tenant became that."""
        return self._first_since[turn.tag]

    def num_waiting(self, tag: str) -> int:
        """How many of one tenant wait."""
        return len(self._tenants.get(tag, ()))

    def join(self, turn: Waiter) -> Waiter | None:
        """Take the last place of the tenant; returns who had to leave for it, the newest of the
        tenant with most. Raises PoolBusy.
        """
        pushed = self._make_room(turn) if self._size >= self._most else None
        waiting = self._tenants.setdefault(turn.tag, deque())
        if not waiting:
            self._first_since[turn.tag] = self._clock()
        waiting.append(turn)
        self._size += 1
        return pushed

    def leave(self, turn: Waiter) -> None:
        """Whoever it was need not wait any more; no matter if it did not."""
        waiting = self._tenants.get(turn.tag)
        if waiting is not None and turn in waiting:
            if turn is waiting[0]:
                self._first_since[turn.tag] = self._clock()
            waiting.remove(turn)
            self._size -= 1
            if not waiting:
                del self._tenants[turn.tag], self._first_since[turn.tag]

    def served(self, turn: Waiter) -> None:
        """Its tenant has had its turn, and is the last now."""
        self.leave(turn)
        if turn.tag in self._tenants:
            self._tenants.move_to_end(turn.tag)

    def _make_room(self, turn: Waiter) -> Waiter:
        longest = max(self._tenants.values(), key=len, default=deque())
        if len(longest) <= self.num_waiting(turn.tag) + 1:
            raise PoolBusy(f"{self._size} requests wait for room in the pool; try again")
        newest = longest[-1]
        self.leave(newest)
        return newest
