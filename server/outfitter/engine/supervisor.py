"""Keeps one engine alive: starts it, waits for it, restarts it, ends it with all its children."""

import asyncio
import contextlib
import enum
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from outfitter.engine import guard

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
MAX_FIRST_STARTS = 3
"""An engine that never became ready is given up after so many attempts."""
STABLE_AFTER_S = 60.0
"""An engine that was ready for so long starts the backoff anew."""
POLL_STARTING_S = 0.25
POLL_READY_S = 5.0
_UNIX_PATH_MAX = 100


class State(enum.Enum):
    """Where the engine is in its life; the value is what clients are told."""

    NEW = "the engine has not been started yet"
    LOADING = "the engine is loading the model"
    READY = "ready"
    RESTARTING = "the engine stopped and is being restarted"
    FAILED = "the engine could not be started"
    STOPPED = "the engine was stopped"


class Supervisor:
    """Owns the engine's process, its private directory and its socket.

    `run` is the whole life: await it in a task, cancel the task to stop. `command` makes the
    command line for a socket path; `emit` receives the engine's log lines, `announce` what the
    supervisor itself has to say; `on_ready` is awaited before the engine counts as ready. When one
    of them raises, that is told, and the engine is started again as if it had died.
    """

    def __init__(
        self,
        command: Callable[[Path], Sequence[str]],
        environment: Mapping[str, str],
        emit: Callable[[str], None],
        announce: Callable[[str], None],
        on_ready: Callable[[], Awaitable[None]],
    ) -> None:
        self._command = command
        self._environment = dict(environment)
        self._emit = emit
        self._announce = announce
        self._on_ready = on_ready
        self._directory = private_directory()
        self._process: asyncio.subprocess.Process | None = None
        self._became_ready_at: float | None = None
        self.socket = self._directory / "engine.sock"
        self.state = State.NEW
        self.starts = 0

    @property
    def restarts(self) -> int:
        """How often the engine was started again."""
        return max(0, self.starts - 1)

    @property
    def is_ready(self) -> bool:
        """Whether requests may be relayed now."""
        return self.state is State.READY

    async def run(self) -> None:
        """Keep the engine alive until cancelled; returns when it can never be started."""
        try:
            await self._keep_alive()
        except asyncio.CancelledError:
            self.state = State.STOPPED
            raise
        finally:
            if self.state is not State.STOPPED:
                self.state = State.FAILED
            await asyncio.shield(self._stop())

    async def _keep_alive(self) -> None:
        backoff, was_ever_ready = FIRST_BACKOFF_S, False
        while True:
            self.state = State.RESTARTING if was_ever_ready else State.LOADING
            status = await self._live_once()
            self._announce(f"the engine exited with status {status}")
            was_ever_ready = was_ever_ready or self._became_ready_at is not None
            if not was_ever_ready and self.starts == MAX_FIRST_STARTS:
                return
            backoff = FIRST_BACKOFF_S if self._was_stable() else backoff
            self._announce(f"the engine is started again in {backoff:g} s")
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, MAX_BACKOFF_S)

    def _was_stable(self) -> bool:
        ready_at = self._became_ready_at
        return ready_at is not None and time.monotonic() - ready_at > STABLE_AFTER_S

    async def _live_once(self) -> int:
        """One process from start to exit; it is ended when a task around it fails."""
        self.socket.unlink(missing_ok=True)
        self._became_ready_at = None
        self.starts += 1
        process = self._process = await self._spawn()
        tasks = [asyncio.create_task(self._forward_log(process))]
        tasks += [asyncio.create_task(self._watch_health(process))]
        try:
            await self._first_trouble(process, tasks)
            await self._end(process)
            return await process.wait()
        finally:
            self.state = State.RESTARTING
            await self._end(process)
            await _cancel(tasks)

    async def _first_trouble(
        self, process: asyncio.subprocess.Process, tasks: "Sequence[asyncio.Task[None]]"
    ) -> None:
        """Returns when the process exits or a task fails, and tells of the latter."""
        exited = asyncio.create_task(process.wait())
        pending: set[asyncio.Task[Any]] = {exited, *tasks}
        try:
            while not exited.done():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if (error := task.exception()) is not None:
                        log.error("what surrounds the engine failed", exc_info=error)
                        self._announce(f"the engine cannot be used and is ended: {error!r}")
                        return
        finally:
            exited.cancel()

    async def _spawn(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            guard.__file__,
            str(self._directory),
            *self._command(self.socket),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environment,
            start_new_session=True,
        )

    async def _forward_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        rest = b""
        while chunk := await process.stdout.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._emit(line.decode(errors="replace").rstrip("\r"))
            rest = rest[-65536:]
        if rest:
            self._emit(rest.decode(errors="replace"))

    async def _watch_health(self, process: asyncio.subprocess.Process) -> None:
        connector = aiohttp.UnixConnector(str(self.socket), force_close=True)
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            while True:
                status = await _health(session)
                if status == 200 and not self.is_ready:
                    await self._on_ready()
                    self._became_ready_at = time.monotonic()
                    self.state = State.READY
                elif self.is_ready and status == 503:  # the API process outlived the engine core
                    self._announce("the engine reports that it is dead")
                    await self._end(process)
                    return
                await asyncio.sleep(POLL_READY_S if self.is_ready else POLL_STARTING_S)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """End the guard, which ends everything below it; returns when it is gone."""
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), guard.TERM_GRACE_S + 10)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()

    async def _stop(self) -> None:
        if self._process is not None:
            await self._end(self._process)
        shutil.rmtree(self._directory, ignore_errors=True)


def private_directory() -> Path:
    """A new directory that only this user can enter, short enough for a socket's path."""
    directory = tempfile.mkdtemp(prefix="outfitter-")
    if len(directory) + len("/engine.sock") > _UNIX_PATH_MAX:
        os.rmdir(directory)
        directory = tempfile.mkdtemp(prefix="outfitter-", dir="/tmp")
    return Path(directory)


async def _health(session: aiohttp.ClientSession) -> int:
    """The status of the engine's health route; 0 when there is no answer."""
    try:
        async with session.get("http://engine/health") as response:
            return response.status
    except (TimeoutError, aiohttp.ClientError, OSError):
        return 0


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Let the log run out for a moment, then cancel what is left."""
    _, pending = await asyncio.wait(tasks[:1], timeout=1.0)
    for task in [*pending, *tasks[1:]]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
