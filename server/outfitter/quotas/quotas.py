"""Quotas of one gateway: a request is counted, waits for its turn, and runs with a ticket."""

import asyncio
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from outfitter.control.fair_queue import FairQueue, Place
from outfitter.control.limits import LimitsOf
from outfitter.control.outcome import CLIENT_LEFT, Outcome
from outfitter.control.principal import Principal
from outfitter.control.storage import Stored, experiments_refusal, storage_refusal
from outfitter.control.tenant_tag import engine_headers_of
from outfitter.control.windows import (
    REQUESTS,
    TOKENS,
    Standing,
    Window,
    headers_of,
    reading_window,
    refusal,
    windows_of,
)
from outfitter.errors import ApiError, unavailable
from outfitter.quotas.count import Count
from outfitter.quotas.counters import CHARGE_TIMEOUT_S, Counters
from outfitter.quotas.ticket import Ticket

MAX_LABELS = 64
"""Tenants that the numbers name; the rest is `other` in them."""
OTHER = "other"

NamespacesOf = Callable[[str], Sequence[str] | None]
"""The namespaces of a tenant; None for all that there are."""


@dataclass
class Numbers:
    """What became of one tenant's requests. refused: by code."""

    admitted: int = 0
    waited: int = 0
    waited_seconds: float = 0.0
    tokens: int = 0
    refused: Counter[str] = field(default_factory=Counter)


class Quotas:
    """Admits requests by the limits of their tenants.

    limits_of: asked with every request. namespaces_of: asked with every file that is published.
    stored: what the namespaces of a tenant hold, given the digest of a file; may block. clock:
    seconds since 1970. max_wait_s: how long a request waits for its turn.
    """

    def __init__(
        self,
        limits_of: LimitsOf,
        counters: Counters,
        queue: FairQueue,
        stored: Callable[[Sequence[str] | None, str | None], Stored],
        *,
        max_wait_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.limits_of = limits_of
        self.namespaces_of: NamespacesOf = lambda tenant: None  # noqa: ARG005
        self._counters = counters
        self._queue = queue
        self._stored = stored
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._turns: dict[Place, asyncio.Future[None]] = {}
        self._charges: set[asyncio.Task[list[int]]] = set()
        self._numbers: OrderedDict[str, Numbers] = OrderedDict()
        self._lock = threading.Lock()

    @asynccontextmanager
    async def admitted(self, principal: Principal, request: Request) -> AsyncIterator[Ticket]:
        """Count a request whose body was read, and wait until it may run.

        Its place is free again when the block ends, or with the response that `Ticket.carry`
        returned. Raises ApiError: 429 `rate_limit_exceeded`, 429 `tenant_queue_full`, 503
        `server_busy`, and 503 when the server stops. An ApiError of the block gets the headers.
        """
        tenant, limits = principal.tenant, self.limits_of(principal.tenant)
        numbers, headers = self._of(tenant), dict[str, str]()
        try:
            if limits.has_windows:
                headers = await self._counted(principal, windows_of(limits))
            place = await self._placed(tenant, limits.concurrent_requests, limits.queue, request)
        except ApiError as error:
            numbers.refused[str(error.code)] += 1
            error.headers = {**headers, **error.headers}
            raise
        numbers.admitted += 1
        engine_headers = engine_headers_of(tenant, limits.pool_share)
        ticket = Ticket(headers, engine_headers, place.charged, lambda: self._leave(place))
        try:
            yield ticket
        except ApiError as error:
            error.headers = {**headers, **error.headers}
            raise
        finally:
            if not ticket.is_carried:
                ticket.close()

    def sent(self, outcome: Outcome, estimate: int) -> None:
        """Charge the prompt of a request that goes to the engine now, so that who leaves has paid.

        estimate: its tokens; `observe` puts it right by what the engine counted.
        """
        outcome.estimate, outcome.sent_at = estimate, self._clock()
        self._charge(outcome.principal, lambda window: estimate)  # noqa: ARG005

    async def count(self, principal: Principal, limit: str, number: int = 1) -> None:
        """Count a request that asks no model, by one of its tenant's limits; raises ApiError (429).

        limit: its name, such as `reads_per_minute`. number: what it counts for.
        """
        window = reading_window(limit, self.limits_of(principal.tenant))
        if window is None:
            return
        try:
            await self._counted(principal, (window,), number)
        except ApiError as error:
            self._of(principal.tenant).refused[str(error.code)] += 1
            raise

    @property
    def num_waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._queue.num_waiting

    def observe(self, outcome: Outcome) -> None:
        """Charge a request that has ended, however that was; nobody waits for it."""
        tenant = outcome.principal.tenant
        tokens = outcome.prompt_tokens + outcome.completion_tokens
        if (charged := outcome.charged) is not None:
            has_left = outcome.status == CLIENT_LEFT  # what the engine did for it is not known
            self._queue.settle(tenant, max(tokens, charged) if has_left else tokens, charged)
        self._of(tenant).tokens += tokens
        now, more = self._clock(), tokens - outcome.estimate

        def rest(window: Window) -> int:
            is_same = window.number(tenant, outcome.sent_at) == window.number(tenant, now)
            return more if is_same else max(0, more)

        self._charge(outcome.principal, rest)

    def require_room(self, principal: Principal, nbytes: int, digest: str | None = None) -> None:
        """Raise ApiError (403) unless a tenant may store so many bytes more; may block.

        digest: of the file; one that the tenant has already takes no room.
        """
        limit = self.limits_of(principal.tenant).stored_bytes
        if limit is None:
            return
        stored = self._stored(self.namespaces_of(principal.tenant), digest)
        if error := storage_refusal(principal.tenant, stored, nbytes, limit):
            self._of(principal.tenant).refused[str(error.code)] += 1
            raise error

    def require_experiment(
        self, principal: Principal, count: Callable[[Sequence[str] | None], int]
    ) -> None:
        """Raise ApiError (403) unless a tenant may have one more experiment; may block.

        count: of those in some namespaces, all of them when None.
        """
        limit = self.limits_of(principal.tenant).experiments
        if limit is None:
            return
        stored = count(self.namespaces_of(principal.tenant))
        if error := experiments_refusal(principal.tenant, stored, limit):
            self._of(principal.tenant).refused[str(error.code)] += 1
            raise error

    def stats(self) -> dict[str, Any]:
        """The numbers of this process; those of at most MAX_LABELS tenants are told apart."""
        places = self._queue.stats()
        with self._lock:
            known = list(self._numbers.items())
        named = [name for name, _ in reversed(known) if name != OTHER][:MAX_LABELS]
        tenants: dict[str, dict[str, Any]] = {}
        for name, numbers in known:
            of = tenants.setdefault(name if name in named else OTHER, _empty())
            running, waiting = places.get(name, (0, 0))
            told = vars(numbers) | {"running": running, "waiting": waiting}
            for key in of.keys() - {"refused"}:
                of[key] += told[key]
            of["refused"] = dict(Counter(of["refused"]) + numbers.refused)
        return {
            "running": self._queue.num_running,
            "waiting": self._queue.num_waiting,
            "counters": self._counters.stats(),
            "tenants": tenants,
        }

    async def close(self) -> None:
        """Let the last charges arrive, and close the connections."""
        await asyncio.gather(*self._charges, return_exceptions=True)
        await self._counters.close()

    async def _counted(
        self, principal: Principal, windows: Sequence[Window], number: int = 1
    ) -> dict[str, str]:
        """The headers for the client; raises ApiError (429)."""
        now, tenant = self._clock(), principal.tenant
        counts = [_count_of(w, principal, now, number * (w.kind == REQUESTS)) for w in windows]
        used = await self._counters.count(counts)
        standings = [
            Standing(window, number, window.resets_in(tenant, now))
            for window, number in zip(windows, used, strict=True)
        ]
        if error := refusal(tenant, standings):
            raise error
        return headers_of(standings)

    async def _placed(
        self, tenant: str, most: int | None, queue: int | None, request: Request
    ) -> Place:
        """A place that runs; whoever leaves, or is sent away, leaves none behind."""
        place, pushed = self._queue.enter(tenant, most=most, queue=queue)
        turn = self._turns.get(pushed) if pushed is not None else None
        if turn is not None and not turn.done():
            why = "others wait too, and of these requests most are of this tenant"
            turn.set_exception(self._queue.busy(why))
        if place.is_running:
            return place
        began = time.monotonic()
        try:
            await self._wait(place, request)
        except BaseException:
            self._leave(place)
            raise
        finally:
            numbers = self._of(tenant)
            numbers.waited += 1
            numbers.waited_seconds += time.monotonic() - began
        return place

    async def _wait(self, place: Place, request: Request) -> None:
        """Raises ApiError: 503, 429, or 499 as soon as the client has left."""
        turn = self._turns[place] = asyncio.get_running_loop().create_future()
        departure = asyncio.create_task(_departure(request))
        try:
            await asyncio.wait(
                {turn, departure},
                timeout=self._max_wait_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
        except asyncio.CancelledError:  # only the server does this, when draining took too long
            raise unavailable("the server is shutting down", "shutting_down") from None
        finally:
            del self._turns[place]
            departure.cancel()
            await asyncio.wait({departure})
        if turn.done():
            turn.result()
        elif not departure.cancelled():
            departure.result()
            raise ApiError(CLIENT_LEFT, "the client left before its turn", "client_left")
        elif self._queue.is_at_limit(place.tenant):
            raise self._queue.at_limit(place.tenant, self._max_wait_s)
        else:
            raise self._queue.busy(f"no turn within {self._max_wait_s:g} s")

    def _charge(self, principal: Principal, amount_of: Callable[[Window], int]) -> None:
        """Count tokens, by window; nobody waits for it."""
        now = self._clock()
        windows = [w for w in windows_of(self.limits_of(principal.tenant)) if w.kind == TOKENS]
        counts = [_count_of(w, principal, now, amount_of(w)) for w in windows if amount_of(w)]
        if counts:
            task = asyncio.create_task(self._counters.count(counts, timeout_s=CHARGE_TIMEOUT_S))
            self._charges.add(task)
            task.add_done_callback(self._charges.discard)

    def _leave(self, place: Place) -> None:
        for served in self._queue.leave(place):
            if (turn := self._turns.get(served)) is not None and not turn.done():
                turn.set_result(None)

    def _of(self, tenant: str) -> Numbers:
        with self._lock:  # files are published in threads
            if tenant not in self._numbers:
                self._forget_oldest()
                self._numbers[tenant] = Numbers()
            self._numbers.move_to_end(tenant)
            return self._numbers[tenant]

    def _forget_oldest(self) -> None:
        """Counters must not fall, so what is forgotten goes on as `other`."""
        if len(self._numbers) <= MAX_LABELS:
            return
        oldest = next(name for name in self._numbers if name != OTHER)
        gone, other = self._numbers.pop(oldest), self._numbers.setdefault(OTHER, Numbers())
        other.admitted += gone.admitted
        other.waited += gone.waited
        other.waited_seconds += gone.waited_seconds
        other.tokens += gone.tokens
        other.refused += gone.refused


def _count_of(window: Window, principal: Principal, now: float, amount: int) -> Count:
    number = window.number(principal.tenant, now)
    return Count(f"{principal.counted_as}:{window.name}", number, amount, window.seconds)


def _empty() -> dict[str, Any]:
    numbers = {"admitted": 0, "waited": 0, "waited_seconds": 0.0, "tokens": 0}
    return {**numbers, "running": 0, "waiting": 0, "refused": {}}


async def _departure(request: Request) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
