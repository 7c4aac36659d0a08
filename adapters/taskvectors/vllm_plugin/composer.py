"""The composer: makes a loadout of any method one that the engine serves, a linear one.

The first request for a loadout composes it, in a child process; all others wait for that, or find
the result in memory or in the store. The derived loadout is one vector with weight 1.
"""

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass

from taskvectors import errors
from taskvectors.errors import (
    EngineUnavailable,
    InvalidFile,
    PoolBusy,
    TaskVectorError,
    VectorNotFound,
)
from taskvectors.merge.compose import Composed, Job
from taskvectors.method import MERGE_ONCE
from taskvectors.methods import find_method
from taskvectors.spec import Loadout, LoadoutItem
from taskvectors.store.composed import ComposedStore, composed_key
from taskvectors.store.tiered import TieredFiles
from taskvectors.vllm_plugin.config import PluginConfig

logger = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own, to be shown with it

MAX_RUNNING = 2
MAX_REMEMBERED = 4096
TOUCH_S = 10.0
"""A composed file in use is marked so at most this often; see ComposedStore.GRACE_S."""
COMMAND = (sys.executable, "-P", "-m", "taskvectors.merge.compose")

Run = Callable[[Loadout], Awaitable[Composed]]


@dataclass(eq=False)
class Flight:
    """One composition under way; `waiting` counts the requests that want it."""

    task: asyncio.Task[str]
    waiting: int = 0
    is_running: bool = False


@dataclass(eq=False)
class Remembered:
    """The composed file of a loadout, and when the store was last told that it is used."""

    digest: str
    touched: float


class Composer:
    """Composes each loadout once.

    run: makes the file of a loadout that is not in the store. A composition that has begun goes on
    when its clients leave, so that a client with little patience finds it done when it comes back;
    one that still waits for its turn is dropped. Failures are not remembered.
    """

    def __init__(self, config: PluginConfig, run: Run) -> None:
        self._config = config
        self._run = run
        self._store = ComposedStore(config.store)
        self._flights: dict[str, Flight] = {}
        self._remembered: OrderedDict[str, Remembered] = OrderedDict()
        self._repairing = asyncio.Lock()
        self._turns = asyncio.Semaphore(MAX_RUNNING)

    async def compose(self, loadout: Loadout) -> Loadout:
        """The linear loadout that is served for `loadout`: itself, or its composed file.

        Raises InvalidLoadout for a publish-time method, PoolBusy, EngineUnavailable, and what
        taskvectors.merge.compose raises.
        """
        return loadout if loadout.is_linear else await self.compose_any(loadout)

    async def compose_any(self, loadout: Loadout) -> Loadout:
        """Its composed file, for a linear loadout, too. Raises what `compose` raises."""
        find_method(loadout.method).check_at_request()
        digest = await self._recall(loadout) or await self._join(loadout)
        return Loadout((LoadoutItem(digest, 1.0),))

    async def repair(self, served: Loadout) -> None:
        """Drop the composed file of a derived loadout if it is lost or damaged."""
        async with self._repairing:
            for digest in served.digests:
                if not await asyncio.to_thread(self._store.check, digest):
                    self._forget(digest)

    def _forget(self, digest: str) -> None:
        for key in [k for k, known in self._remembered.items() if known.digest == digest]:
            del self._remembered[key]

    async def _recall(self, loadout: Loadout) -> str | None:
        known = self._remembered.get(loadout.digest)
        if known is None:
            return None
        self._remembered.move_to_end(loadout.digest)
        if time.monotonic() - known.touched > TOUCH_S:
            known.touched = time.monotonic()
            if not await asyncio.to_thread(self._store.touch, known.digest):
                self._remembered.pop(loadout.digest, None)
                return None
        return known.digest

    def _remember(self, loadout: Loadout, digest: str) -> None:
        self._remembered[loadout.digest] = Remembered(digest, time.monotonic())
        while len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)

    async def _join(self, loadout: Loadout) -> str:
        """Wait for the one composition of a loadout, or begin it."""
        waiting = sum(flight.waiting for flight in self._flights.values())
        if waiting >= max(1, self._config.max_waiting):
            raise PoolBusy(f"{waiting} requests wait for loadouts to be composed; try again")
        flight = self._flights.get(loadout.digest) or self._begin(loadout)
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.is_running and not flight.task.done():
                self._end(loadout, flight)
                flight.task.cancel()

    def _begin(self, loadout: Loadout) -> Flight:
        flight = Flight(asyncio.ensure_future(self._fly(loadout)))
        self._flights[loadout.digest] = flight

        def done(task: asyncio.Task[str]) -> None:
            self._end(loadout, flight)
            if not task.cancelled():
                task.exception()  # not worth a warning when nobody waits any more

        flight.task.add_done_callback(done)
        return flight

    def _end(self, loadout: Loadout, flight: Flight) -> None:
        if self._flights.get(loadout.digest) is flight:
            del self._flights[loadout.digest]

    async def _fly(self, loadout: Loadout) -> str:
        key = composed_key(loadout, self._config.base_fingerprint)
        digest = await asyncio.to_thread(self._store.find, key)
        if digest is None:
            digest = await self._compose_in_turn(loadout)
        self._remember(loadout, digest)
        return digest

    async def _compose_in_turn(self, loadout: Loadout) -> str:
        begin = time.monotonic()
        seconds = self._config.compose_timeout_s
        try:
            async with asyncio.timeout(seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise PoolBusy(
                f"other loadouts are being composed for longer than {seconds:g} s; try again"
            ) from None
        try:
            self._flights[loadout.digest].is_running = True
            turn = time.monotonic()
            composed = await self._run(loadout)
        except TaskVectorError as error:
            logger.warning("loadout sha256:%s was not composed: %s", loadout.digest, error)
            raise
        finally:
            self._turns.release()
        logger.info(
            "loadout sha256:%s composed: %s of %d vectors, %.1f MB, %.2f s after %.2f s in line",
            *(loadout.digest, loadout.method, len(loadout.items), composed.nbytes / 1e6),
            *(time.monotonic() - turn, turn - begin),
        )
        return composed.digest


class LocalFiles:
    """Runs a composition on files that lie on the local disk, as the process that does it needs.

    A file that it finds damaged is fetched again from another tier: once.
    """

    def __init__(self, files: TieredFiles, run: Run) -> None:
        self._files = files
        self._run = run

    async def __call__(self, loadout: Loadout) -> Composed:
        """Raises VectorNotFound, TierUnavailable, StoreFull, and what `run` raises."""
        for digest in loadout.digests:
            await asyncio.to_thread(self._files.path, digest)
        try:
            return await self._run(loadout)
        except (InvalidFile, VectorNotFound):
            heal = self._files.heal
            healed = [await asyncio.to_thread(heal, digest) for digest in loadout.digests]
            if not any(healed):
                raise
            return await self._run(loadout)


class ChildProcess:
    """Composes in a process of its own; whatever becomes of that, this one goes on.

    base_dir: the base's checkpoint, None where it is no local folder. command: of the child.
    """

    def __init__(
        self,
        config: PluginConfig,
        *,
        value_bytes: int,
        sparse_value_bytes: int,
        base_dir: str | None,
        command: tuple[str, ...] = COMMAND,
    ) -> None:
        self._config = config
        self._widths = (value_bytes, sparse_value_bytes)
        self._base_dir = base_dir
        self._command = command

    async def __call__(self, loadout: Loadout) -> Composed:
        """Raises the child's TaskVectorError; EngineUnavailable where it did not answer."""
        try:
            child = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        except OSError as error:
            raise EngineUnavailable(f"no process can be started: {error.strerror}") from error
        job = {**asdict(self._job(loadout)), "parent": os.getpid()}
        try:
            async with asyncio.timeout(self._config.compose_timeout_s):
                answer, _ = await child.communicate(json.dumps(job).encode())
        except TimeoutError:
            raise EngineUnavailable(
                f"the loadout was not composed within {self._config.compose_timeout_s:g} s; use"
                f" fewer vectors, or {MERGE_ONCE}"
            ) from None
        except RuntimeError:  # uvloop's, when the child is gone before it could be written to
            answer = b""
        finally:
            if child.returncode is None:
                with suppress(ProcessLookupError):
                    child.kill()
                await child.wait()
        return _outcome(answer, child.returncode)

    def _job(self, loadout: Loadout) -> Job:
        config = self._config
        return Job(
            store=str(config.store),
            loadout=loadout.canonical,
            base_fingerprint=config.base_fingerprint,
            base_dir=self._base_dir,
            value_bytes=self._widths[0],
            sparse_value_bytes=self._widths[1],
            pool_bytes=config.pool_bytes,
            composed_bytes=config.composed_bytes,
            memory_bytes=config.compose_memory_bytes,
        )


def _outcome(answer: bytes, status: int | None) -> Composed:
    """What the child said, or an error that says how it ended."""
    try:
        fields = json.loads(answer)
        if "error" not in fields:
            return Composed(**fields)
        kind = getattr(errors, fields["error"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise EngineUnavailable(
            f"the process that composes the loadout ended without an answer ({_ending(status)}); if"
            f" this lasts, {MERGE_ONCE}"
        ) from error
    raise kind(fields["message"])


def _ending(status: int | None) -> str:
    if status is not None and status < 0:
        return f"{signal.Signals(-status).name}, perhaps for want of memory, see --compose-memory"
    return f"exit status {status}"
