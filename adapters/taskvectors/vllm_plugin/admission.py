"""Admission: a request waits here until every vector of its loadout is ready in the pool."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

from taskvectors.errors import (
    EngineUnavailable,
    PoolBusy,
    TaskVectorError,
    TierUnavailable,
    VectorLoadFailed,
    VectorNotFound,
)
from taskvectors.footprint import resident_bytes
from taskvectors.format import check_against_base
from taskvectors.spec import Loadout
from taskvectors.store.tiered import TieredFiles
from taskvectors.vllm_plugin.config import PluginConfig
from taskvectors.vllm_plugin.ledger import Ledger, Reservation
from taskvectors.vllm_plugin.line import Line, Waiter
from taskvectors.vllm_plugin.pool import AWAY, FAILED, MISSING, READY
from taskvectors.vllm_plugin.shares import Entry
from taskvectors.vllm_plugin.tenant import ASKING, Tenant

logger = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own, to be shown with it

FIRST_POLL_S, LONGEST_POLL_S = 0.001, 0.05
MAX_TOLD = 64
"""Tenants of which numbers are told."""
SENT_AWAY = "the line for room in the pool is full, mostly with requests of this tenant; try again"
UNANSWERED = "the engine does not answer; try again"
FAILURES: Mapping[str, type[TaskVectorError]] = {
    FAILED: VectorLoadFailed,
    MISSING: VectorNotFound,
    AWAY: TierUnavailable,
}
"""How a state of the worker's begins, and what a request is told then."""


class Worker(Protocol):
    """The worker's pool, seen from the API server. Calls arrive in the order of sending."""

    def apply(self, evict: list[str], load: dict[str, tuple[int, int]]) -> Awaitable[None]:
        """Evict and start loading (digest → column, bytes reserved); returns before it is done."""
        ...

    def status(self) -> Awaitable[Mapping[str, str]]:
        """The state by digest; see FAILURES for what is not 'loading' or 'ready'."""
        ...

    def prefetch(self, digests: list[str]) -> Awaitable[None]:
        """Start bringing vectors into the worker's host memory."""
        ...


@dataclass(frozen=True)
class Loading:
    """A vector on its way into the pool; `done` fails when it does not get there."""

    entry: Entry
    done: asyncio.Future[None]


@dataclass(frozen=True)
class Held:
    """A reservation, the order to the worker that it made necessary, and what it waits for."""

    reservation: Reservation
    order: asyncio.Future[None] | None
    loads: tuple[Loading, ...]


class Admission:
    """Reserves room in the pool for loadouts and loads what is missing, once per vector.

    value_bytes: of a low-rank or dense value on the device; sparse_value_bytes: of a sparse one.
    """

    def __init__(
        self,
        config: PluginConfig,
        worker: Worker,
        files: TieredFiles,
        *,
        value_bytes: int,
        sparse_value_bytes: int,
    ) -> None:
        self._config = config
        self._worker = worker
        self._widths = (value_bytes, sparse_value_bytes)
        self._files = files
        self._ledger = Ledger(config.pool_bytes, config.max_vectors)
        self._loading: dict[str, Loading] = {}
        self._line = Line(config.max_waiting)
        self._next_look: asyncio.TimerHandle | None = None
        self._poller: asyncio.Task[None] | None = None
        self._prefetches: set[asyncio.Future[None]] = set()
        self._num_loads = self._num_evictions = 0

    @contextlib.asynccontextmanager
    async def admit(self, loadout: Loadout, *, is_promoted: bool = False) -> AsyncIterator[None]:
        """Hold the loadout's vectors, all of them ready, while the context is open.

        They count for the tenant in `ASKING`, and for none if they are promoted: those take room
        from all alike.

        Raises VectorNotFound, TierUnavailable, BaseMismatch, InvalidFile, PoolTooSmall, PoolBusy,
        VectorLoadFailed, EngineUnavailable.
        """
        tenant = None if is_promoted else ASKING.get()
        held = await self._reserve(await self._needs(loadout.digests), tenant)
        try:
            await self._make_ready(held)
            yield
        finally:
            self.release(held)

    async def hold(self, digest: str, *, may_evict: bool) -> Held | None:
        """Reserve one vector and wait until it is ready; None when there is no room now.

        The caller lets go of it with `release`. Raises what `admit` raises, except PoolBusy.
        """
        needs = {digest: await self.nbytes(digest)}
        if not self._ledger.fits(needs) and (len(self._line) or not may_evict):
            return None
        held = self._try_reserve(needs, None, force=True)
        if held is not None:
            try:
                await self._make_ready(held)
            except BaseException:
                self.release(held)
                raise
        return held

    def hold_resident(self, digest: str) -> Held | None:
        """Reserve one vector that is ready, at once; None when it is not."""
        entry = self._ledger.entry(digest)
        if entry is None or digest in self._loading:
            return None
        return self._try_reserve({digest: entry.nbytes}, None)

    @property
    def free(self) -> tuple[int, int]:
        """Bytes of the pool, and columns, that no vector takes."""
        return self._ledger.free

    @property
    def limits(self) -> tuple[int, int]:
        """Bytes of the pool, and how many vectors it holds."""
        return self._config.pool_bytes, self._config.max_vectors

    async def nbytes(self, digest: str) -> int:
        """Device bytes of a vector. Raises what `admit` raises for it."""
        return (await self._needs([digest]))[digest]

    def stats(self) -> dict[str, int]:
        """The pool's numbers; see the endpoint's `/taskvectors/stats`."""
        return {
            "vectors": self._ledger.num_vectors,
            "nbytes": self._ledger.used_bytes,
            "budget": self._config.pool_bytes,
            "loads": self._num_loads,
            "evictions": self._num_evictions,
            "waiting": len(self._line),
        }

    def tenants(self) -> dict[str, dict[str, float]]:
        """What each active tenant holds, by its tag; of at most MAX_TOLD, those with most."""
        division = self._ledger.division()
        tags = sorted(division.parts, key=lambda tag: division.held(tag).nbytes, reverse=True)
        return {
            tag: {
                "nbytes": round(division.held(tag).nbytes),
                "vectors": round(division.held(tag).columns, 3),
                "share": round(division.parts[tag], 6),
                "waiting": self._line.num_waiting(tag),
            }
            for tag in tags[:MAX_TOLD]
        }

    async def _needs(self, digests: Iterable[str]) -> dict[str, int]:
        """Bytes by digest; a vector in the pool costs no look at its file."""
        known = {digest: self._ledger.entry(digest) for digest in sorted(digests)}
        cold = [digest for digest, entry in known.items() if entry is None]
        if cold:
            sizes = await asyncio.to_thread(lambda: {d: self._footprint(d) for d in cold})
        return {d: entry.nbytes if entry else sizes[d] for d, entry in known.items()}

    def _footprint(self, digest: str) -> int:
        """By a header that is not checked yet, so a refusal for what it says is not remembered."""
        try:
            header = self._files.header(digest)
            check_against_base(header, None, self._config.base_fingerprint)
            nbytes = resident_bytes(header, *self._widths)
            self._ledger.check_fits({digest: nbytes})
        except TaskVectorError:
            with contextlib.suppress(VectorNotFound):
                self._files.forget_header(digest)
            raise
        return nbytes

    async def _reserve(self, needs: Mapping[str, int], tenant: Tenant | None) -> Held:
        if self._may_pass(needs) and (held := self._try_reserve(needs, tenant)):
            return held
        loop = asyncio.get_running_loop()
        turn = Waiter(needs, time.monotonic(), loop.create_future(), tenant)
        if (pushed := self._line.join(turn)) is not None and not pushed.held.done():
            pushed.held.set_exception(PoolBusy(SENT_AWAY))
        self._prefetch([digest for digest in needs if self._ledger.entry(digest) is None])
        if self._line.num_tenants > 1:  # those before it may wait for their own share
            self._serve_queue()
        else:
            self._look_again_later()
        try:
            async with asyncio.timeout(self._config.admission_timeout_s):
                return cast("Held", await turn.held)
        except BaseException as error:
            self._leave_queue(turn)
            if not isinstance(error, TimeoutError):
                raise
            raise PoolBusy(
                f"no room in the pool within {self._config.admission_timeout_s:g} s: its"
                f" {self._config.pool_bytes} bytes are taken by vectors in use; try again"
            ) from None

    @property
    def _patience_s(self) -> float:
        """Who has been first for so long is passed by nobody, and takes what is not in use."""
        return self._config.admission_timeout_s / 2

    def _prefetch(self, digests: list[str]) -> None:
        """Use the time in the queue; whether it helps, the load will tell."""

        async def order() -> None:
            try:
                await self._worker.prefetch(digests)
            except Exception:
                logger.exception("the engine did not take an order to prefetch")

        task = asyncio.ensure_future(order())
        self._prefetches.add(task)
        task.add_done_callback(self._prefetches.discard)

    def _may_pass(self, needs: Mapping[str, int]) -> bool:
        """Whether a request need not queue: nobody does, or it takes no room.

        Once who came first has waited for half of its time, everybody queues: vectors
        that are always in use would else never make room.
        """
        if (oldest := self._line.oldest) is None:
            return True
        is_patient = time.monotonic() - oldest.since < self._patience_s
        return is_patient and all(self._ledger.entry(digest) for digest in needs)

    def _try_reserve(
        self, needs: Mapping[str, int], tenant: Tenant | None, *, force: bool = False
    ) -> Held | None:
        """Reserve and order what is missing, with no await between: nobody sees a half of it."""
        reservation = self._ledger.reserve(needs, tenant, force=force)
        if reservation is None:
            return None
        for digest in reservation.evict:
            if (load := self._loading.pop(digest, None)) is not None:
                load.done.cancel()
        loop = asyncio.get_running_loop()
        for entry in reservation.entries:
            if entry.digest in reservation.load:
                self._loading[entry.digest] = Loading(entry, loop.create_future())
        order = None
        self._num_loads += len(reservation.load)
        self._num_evictions += len(reservation.evict)
        if reservation.load or reservation.evict:
            order = asyncio.ensure_future(
                self._worker.apply(list(reservation.evict), _sizes(reservation))
            )
            if self._poller is None or self._poller.done():
                self._poller = loop.create_task(self._poll())
        digests = [entry.digest for entry in reservation.entries]
        loads = [self._loading[digest] for digest in digests if digest in self._loading]
        return Held(reservation, order, tuple(loads))

    def release(self, held: Held) -> None:
        """Let go of vectors; they stay until their room is needed."""
        self._ledger.release(held.reservation)
        self._serve_queue()

    def _serve_queue(self) -> None:
        """Give room to those who wait, strictly in turn by tenant.

        Who asks for more than its share is passed by.
        """
        while any(self._serve(turn, force=force) for turn, force in self._in_turn()):
            pass
        self._look_again_later()

    def _in_turn(self) -> Iterator[tuple[Waiter, bool]]:
        """Who may be served, and whether by force.

        First who has been the first of its tenant for long, through no fault of its own: it is
        passed by nobody. Then the others by turns, and nobody behind one within its share.
        """
        heads = self._line.heads()
        if entitled := [turn for turn in heads if self._is_entitled(turn)]:
            yield min(entitled, key=self._line.first_since), True
            return
        for turn in heads:
            yield turn, False
            if not self._ledger.exceeds_share(turn.needs, turn.tenant):
                return

    def _is_entitled(self, turn: Waiter) -> bool:
        if time.monotonic() - self._line.first_since(turn) < self._patience_s:
            return False
        waits_for_itself = self._ledger.is_running(turn.tenant)
        return not (waits_for_itself and self._ledger.exceeds_share(turn.needs, turn.tenant))

    def _serve(self, turn: Waiter, *, force: bool) -> bool:
        """Whether a request need not wait any more."""
        if not turn.held.done():
            held = self._try_reserve(turn.needs, turn.tenant, force=force)
            if held is None:
                return False
            turn.held.set_result(held)
        self._line.served(turn)
        return True

    def _look_again_later(self) -> None:
        """When the next one has been first for long: nobody else may come and end that wait."""
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
        now = time.monotonic()
        waits = [
            self._line.first_since(turn) + self._patience_s - now for turn in self._line.heads()
        ]
        if waits := [wait for wait in waits if wait > 0]:
            loop = asyncio.get_running_loop()
            self._next_look = loop.call_later(min(waits), self._serve_queue)

    def _leave_queue(self, turn: Waiter) -> None:
        """Whoever waited is gone, perhaps in the moment in which it was served."""
        self._line.leave(turn)
        if turn.held.done() and not turn.held.cancelled() and turn.held.exception() is None:
            self._ledger.release(turn.held.result().reservation)
        self._serve_queue()

    async def _make_ready(self, held: Held) -> None:
        try:
            async with asyncio.timeout(self._config.admission_timeout_s):
                if held.order is not None:
                    await asyncio.shield(held.order)
                for load in held.loads:
                    await asyncio.shield(load.done)
        except TimeoutError:
            seconds = self._config.admission_timeout_s
            raise EngineUnavailable(f"a task vector was not loaded in {seconds:g} s") from None
        except TaskVectorError:
            raise
        except Exception as error:
            logger.exception("the engine did not take an order")
            raise EngineUnavailable(UNANSWERED) from error

    async def _poll(self) -> None:
        """Ask the worker until nothing is loading; quickly at first, then less often."""
        pause = FIRST_POLL_S
        while self._loading:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_POLL_S)
            loading = list(self._loading.values())
            try:
                failed = self._settle(loading, await self._worker.status())
                if failed:  # who asks again before the eviction is done waits, and fails, too
                    await self._worker.apply([load.entry.digest for load, _ in failed], {})
            except Exception:
                logger.exception("the engine does not answer")
                for load in loading:
                    self._ledger.forget(load.entry)
                self._fail([(load, EngineUnavailable(UNANSWERED)) for load in loading])
                continue
            for load, _ in failed:
                self._ledger.drop(load.entry)
                self._files.forget_header(load.entry.digest)
            self._fail(failed)

    def _settle(
        self, loading: list[Loading], status: Mapping[str, str]
    ) -> list[tuple[Loading, TaskVectorError]]:
        """Finish what is ready; return what failed."""
        failed: list[tuple[Loading, TaskVectorError]] = []
        for load in loading:
            digest = load.entry.digest
            if self._loading.get(digest) is not load:
                continue  # evicted meanwhile, and perhaps ordered again
            state = status.get(digest, "")
            if state == READY:
                del self._loading[digest]
                load.done.set_result(None)
            elif error := failure_of(digest, state):
                failed.append((load, error))
        return failed

    def _fail(self, failed: list[tuple[Loading, TaskVectorError]]) -> None:
        for load, error in failed:
            if self._loading.get(load.entry.digest) is load:
                del self._loading[load.entry.digest]
            if not load.done.done():
                load.done.set_exception(error)
                load.done.exception()  # not worth a warning when nobody waits any more


def _sizes(reservation: Reservation) -> dict[str, tuple[int, int]]:
    """Column and bytes of what is to be loaded: the worker compares them with the checked file."""
    loaded = [entry for entry in reservation.entries if entry.digest in reservation.load]
    return {entry.digest: (entry.column, entry.nbytes) for entry in loaded}


def failure_of(digest: str, state: str) -> TaskVectorError | None:
    """The error that a state of the worker's stands for; None when it is not one of failure."""
    for prefix, kind in FAILURES.items():
        if state.startswith(prefix):
            reason = state.removeprefix(prefix)
            return kind(f"task vector sha256:{digest} could not be loaded: {reason}")
    return None
