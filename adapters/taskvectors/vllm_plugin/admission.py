"""Admission: a request waits here until every vector of its loadout is ready in the pool."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Protocol

from taskvectors.errors import BaseMismatch, PoolBusy, VectorLoadFailed
from taskvectors.footprint import resident_bytes
from taskvectors.format import FileHeader
from taskvectors.spec import Loadout
from taskvectors.store import DirectoryStore
from taskvectors.vllm_plugin.config import PluginConfig
from taskvectors.vllm_plugin.ledger import Ledger, Reservation
from taskvectors.vllm_plugin.pool import FAILED, READY

FIRST_POLL_S, LONGEST_POLL_S = 0.001, 0.05


class Worker(Protocol):
    """The worker's pool, seen from the API server. Calls arrive in the order of sending."""

    def apply(self, evict: list[str], load: dict[str, int]) -> Awaitable[None]:
        """Evict and start loading; returns before anything is loaded."""
        ...

    def status(self) -> Awaitable[Mapping[str, str]]:
        """'loading', 'ready' or 'failed: why' by digest."""
        ...


class Admission:
    """Reserves room in the pool for loadouts and loads what is missing, once per vector.

    value_bytes: of a low-rank or dense value on the device; sparse_value_bytes: of a sparse one.
    """

    def __init__(
        self,
        config: PluginConfig,
        worker: Worker,
        *,
        value_bytes: int,
        sparse_value_bytes: int,
    ) -> None:
        self._config = config
        self._worker = worker
        self._widths = (value_bytes, sparse_value_bytes)
        self._store = DirectoryStore(config.store)
        self._ledger = Ledger(config.pool_bytes, config.max_vectors)
        self._loading: dict[str, asyncio.Future[None]] = {}
        self._room = asyncio.Condition()
        self._waiting = 0
        self._poller: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def admit(self, loadout: Loadout) -> AsyncIterator[None]:
        """Hold the loadout's vectors, all of them ready, while the context is open.

        Raises VectorNotFound, BaseMismatch, PoolTooSmall, PoolBusy, VectorLoadFailed.
        """
        reservation = await self._reserve(await self._needs(loadout))
        try:
            await self._make_ready(reservation)
            yield
        finally:
            self._ledger.release(reservation)
            async with self._room:
                self._room.notify_all()

    async def _needs(self, loadout: Loadout) -> dict[str, int]:
        """Bytes by digest; a vector in the pool costs no look at its file."""
        known = {digest: self._ledger.entry(digest) for digest in sorted(loadout.digests)}
        cold = [digest for digest, entry in known.items() if entry is None]
        sizes = await asyncio.to_thread(lambda: {d: self._footprint(d) for d in cold})
        return {d: entry.nbytes if entry else sizes[d] for d, entry in known.items()}

    def _footprint(self, digest: str) -> int:
        header: FileHeader = self._store.header(digest)
        theirs, ours = header.base.fingerprint, self._config.base_fingerprint
        if None not in (theirs, ours) and theirs != ours:
            raise BaseMismatch(f"task vector sha256:{digest} belongs to base {theirs}, not {ours}")
        return resident_bytes(header, *self._widths)

    async def _reserve(self, needs: Mapping[str, int]) -> Reservation:
        resident = all(self._ledger.entry(digest) for digest in needs)
        if (not self._waiting or resident) and (held := self._ledger.reserve(needs)):
            return held
        if self._waiting >= self._config.max_waiting:
            raise PoolBusy(f"{self._waiting} requests wait for room in the pool; try again")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._config.admission_timeout_s), self._room:
                while (held := self._ledger.reserve(needs)) is None:
                    await self._room.wait()
                return held
        except TimeoutError:
            raise PoolBusy(
                f"no room in the pool within {self._config.admission_timeout_s:g} s: its"
                f" {self._config.pool_bytes} bytes are taken by vectors in use; try again"
            ) from None
        finally:
            self._waiting -= 1

    async def _make_ready(self, reservation: Reservation) -> None:
        if reservation.load or reservation.evict:
            await self._start_loading(reservation)
        waits = [
            self._loading[entry.digest]
            for entry in reservation.entries
            if entry.digest in self._loading
        ]
        for wait in waits:
            await asyncio.shield(wait)

    async def _start_loading(self, reservation: Reservation) -> None:
        """Tell the worker. The futures exist before the first await, so nobody loads twice."""
        for digest in reservation.evict:
            if (future := self._loading.pop(digest, None)) is not None:
                future.cancel()
        for digest in reservation.load:
            self._loading[digest] = asyncio.get_running_loop().create_future()
        order = asyncio.ensure_future(
            self._worker.apply(list(reservation.evict), dict(reservation.load))
        )
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll())
        await asyncio.shield(order)

    async def _poll(self) -> None:
        """Ask the worker until nothing is loading; quickly at first, then less often."""
        pause = FIRST_POLL_S
        while self._loading:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_POLL_S)
            try:
                await self._settle(await self._worker.status())
            except Exception as error:  # noqa: BLE001 (whatever it was, nobody may wait for ever)
                for digest in list(self._loading):
                    self._fail(digest, f"the engine does not answer: {error}")

    async def _settle(self, status: Mapping[str, str]) -> None:
        failed = {}
        for digest in list(self._loading):
            state = status.get(digest, "")
            if state == READY:
                self._loading.pop(digest).set_result(None)
            elif state.startswith(FAILED):
                failed[digest] = state.removeprefix(FAILED)
        if failed:  # evicted first: who asks again before that is done waits and fails, too
            await self._worker.apply(list(failed), {})
            for digest, reason in failed.items():
                self._fail(digest, reason)

    def _fail(self, digest: str, reason: str) -> None:
        if (entry := self._ledger.entry(digest)) is not None:
            self._ledger.drop(entry)
        if (future := self._loading.pop(digest, None)) is not None:
            future.set_exception(
                VectorLoadFailed(f"task vector sha256:{digest} could not be loaded: {reason}")
            )
            future.exception()  # a failure that nobody waits for any more is not worth a warning
