"""Whose request goes to the engine next: start-time fair queueing over tenants. Pure.

Each tenant has a tag that grows by the tokens of what it sends to the engine. The waiting tenant
with the smallest tag is next. Who had nothing to send begins at the tag of whoever was served
last, so that nobody saves up turns. What a request will cost is not known beforehand: it is taken
for the mean of its tenant, and put right when it has ended.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from outfitter.control.windows import retry_after
from outfitter.errors import ApiError

MIN_COST = 32.0
"""Tokens that a request counts for at least: one that fails has had its turn, too."""
MAX_DEBT = 32_768.0
"""Tokens by which a tenant's tag may be ahead of those that are served."""
_MEMORY = 0.2
"""The part of the newest request in a mean."""
MAX_REMEMBERED = 4096
MAX_RETRY_S = 60.0


@dataclass(eq=False)
class Place:
    """A request that waits or runs. number: in the order of arrival.

    charged: tokens that it was taken for when it began to run.
    """

    tenant: str
    number: int
    is_running: bool = False
    charged: float = 0.0


@dataclass(eq=False)
class Queue:
    """One tenant. tag, mean: in tokens. most: how many may run at once, None for any number."""

    tag: float = 0.0
    mean: float = MIN_COST
    most: int | None = None
    num_running: int = 0
    waiting: deque[Place] = field(default_factory=deque)

    @property
    def may_run(self) -> bool:
        """Whether its own limit lets another one run."""
        return self.most is None or self.num_running < self.most


class FairQueue:
    """Lets at most `max_running` requests run, in turn by tenant; `max_waiting` may wait.

    clock: seconds, for the pace at which requests end.
    """

    def __init__(self, max_running: int, max_waiting: int, clock: Callable[[], float]) -> None:
        self._max_running, self._max_waiting = max_running, max_waiting
        self._clock = clock
        self._tenants: dict[str, Queue] = {}
        self._waiting: dict[str, Queue] = {}  # those with waiting requests
        self._now = 0.0  # the tag of whoever was served last
        self._num_places = self.num_running = self.num_waiting = 0
        self._last_end: float | None = None
        self._pace = 1.0

    def enter(
        self, tenant: str, *, most: int | None = None, queue: int | None = None
    ) -> tuple[Place, Place | None]:
        """A place that runs at once or waits, and the one that had to leave the queue for it.

        most: how many of the tenant may run. queue: how many may wait. Raises ApiError: 429
        `tenant_queue_full`, 503 `server_busy`.
        """
        of = self._of(tenant)
        of.most = most
        self._num_places += 1
        place = Place(tenant, self._num_places)
        if not of.waiting:
            of.tag = max(of.tag, self._now)
        if not of.waiting and of.may_run and self.num_running < self._max_running:
            self._run(of, place)
            return place, None
        if queue is not None and len(of.waiting) >= queue:
            raise self._tenant_full(tenant, of, queue)
        pushed = self._make_room(of) if self.num_waiting >= self._max_waiting else None
        of.waiting.append(place)
        self._waiting[tenant] = of
        self.num_waiting += 1
        return place, pushed

    def leave(self, place: Place) -> list[Place]:
        """A request has ended, or has left the queue; returns those that run from now on.

        Those of a place that had to leave are none.
        """
        of = self._of(place.tenant)
        if place.is_running:
            place.is_running = False
            if not of.may_run:  # it waited for itself, which saves up nothing either
                of.tag = max(of.tag, self._now)
            of.num_running -= 1
            self.num_running -= 1
            self._keep_pace()
        elif place in of.waiting:
            of.waiting.remove(place)
            self._left(place.tenant, of)
        return self._serve()

    def settle(self, tenant: str, tokens: float, charged: float) -> None:
        """A request that ran has cost so many tokens. charged: what it was taken for."""
        of = self._of(tenant)
        cost = max(MIN_COST, float(tokens))
        of.tag = min(of.tag + cost - charged, max(of.tag, self._now + MAX_DEBT))
        of.mean += _MEMORY * (cost - of.mean)

    def is_at_limit(self, tenant: str) -> bool:
        """Whether a tenant waits for itself."""
        return not self._of(tenant).may_run

    def busy(self, why: str) -> ApiError:
        """503: the server has more to do than it can."""
        headers = {"retry-after": self._retry_after(self.num_waiting)}
        return ApiError(
            503, f"the server is busy: {why}; try again", "server_busy", None, "", headers
        )

    def at_limit(self, tenant: str, seconds: float) -> ApiError:
        """429: the tenant's own requests kept this one waiting for too long."""
        of = self._of(tenant)
        message = (
            f"the request waited {seconds:g} s as {of.num_running} of tenant {tenant!r} run and"
            f" concurrent_requests is {of.most}; try again"
        )
        headers = {"retry-after": self._retry_after(len(of.waiting))}
        return ApiError(429, message, "tenant_queue_full", headers=headers)

    def stats(self) -> dict[str, tuple[int, int]]:
        """How many run and wait, of every tenant that has any."""
        return {
            name: (of.num_running, len(of.waiting))
            for name, of in self._tenants.items()
            if of.num_running or of.waiting
        }

    def _serve(self) -> list[Place]:
        served = []
        while self.num_running < self._max_running:
            ready = [of for of in self._waiting.values() if of.may_run]
            if not ready:
                break
            of = min(ready, key=lambda of: (of.tag, of.waiting[0].number))
            place = of.waiting.popleft()
            self._left(place.tenant, of)
            self._run(of, place)
            served.append(place)
        return served

    def _run(self, of: Queue, place: Place) -> None:
        self._now = max(self._now, of.tag)
        place.charged = of.mean
        of.tag += place.charged
        of.num_running += 1
        self.num_running += 1
        place.is_running = True

    def _left(self, tenant: str, of: Queue) -> None:
        self.num_waiting -= 1
        if not of.waiting:
            del self._waiting[tenant]

    def _make_room(self, of: Queue) -> Place:
        """Send the newest request away of the tenant that has most, unless that is this one.

        Raises ApiError (503).
        """
        longest = max(self._waiting.values(), key=lambda other: len(other.waiting), default=of)
        if len(longest.waiting) <= len(of.waiting) + 1:
            raise self.busy(f"{self.num_waiting} requests wait")
        place = longest.waiting.pop()
        self._left(place.tenant, longest)
        return place

    def _tenant_full(self, tenant: str, of: Queue, queue: int) -> ApiError:
        running = f"{of.num_running} requests of tenant {tenant!r} run"
        if of.most is not None:
            running += f" (concurrent_requests is {of.most})"
        message = f"{running} and {len(of.waiting)} wait (queue is {queue}); try again"
        headers = {"retry-after": self._retry_after(len(of.waiting))}
        return ApiError(429, message, "tenant_queue_full", headers=headers)

    def _retry_after(self, num_waiting: int) -> str:
        """When those who wait now will have had their turn, by the pace of late."""
        return retry_after(min(MAX_RETRY_S, (num_waiting + 1) * self._pace))

    def _keep_pace(self) -> None:
        now = self._clock()
        if self._last_end is not None and self.num_waiting:
            self._pace += _MEMORY * (now - self._last_end - self._pace)
        self._last_end = now

    def _of(self, tenant: str) -> Queue:
        if (of := self._tenants.get(tenant)) is None:
            if len(self._tenants) >= MAX_REMEMBERED:
                self._forget_idle()
            of = self._tenants[tenant] = Queue()
        return of

    def _forget_idle(self) -> None:
        for name, of in list(self._tenants.items()):
            if not of.num_running and not of.waiting and of.tag <= self._now:
                del self._tenants[name]
