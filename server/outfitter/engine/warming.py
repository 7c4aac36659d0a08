"""Vectors that are loaded before anybody asks: those that are pinned, and those just saved."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from outfitter.control.resolve import ResolvedVector
from outfitter.engine.relay import Relay
from taskvectors.errors import EngineUnavailable, TaskVectorError
from taskvectors.spec import Reference

log = logging.getLogger(__name__)

MAX_PREFETCHES = 8
"""Further ones meanwhile are left out: whoever asks for those vectors loads them."""
READY, MEMORY = "ready", "memory"


class Warming:
    """Warms one engine, in the background; what fails is told and harms nobody.

    resolve: may block. announce: told one line of each warm-up. progress: how many of how many.
    """

    def __init__(
        self,
        relay: Relay,
        resolve: Callable[[Reference], ResolvedVector],
        announce: Callable[[str], None],
        progress: Callable[[int, int], None],
    ) -> None:
        self._relay = relay
        self._resolve = resolve
        self._announce = announce
        self._progress = progress
        self._pinning: asyncio.Task[None] | None = None
        self._prefetches: set[asyncio.Task[None]] = set()

    def begin(self, pins: Sequence[str]) -> None:
        """Pin vectors in an engine that has just started; a warm-up of the one before is given up.

        Returns at once.
        """
        if self._pinning is not None:
            self._pinning.cancel()
        self._pinning = asyncio.create_task(self._pin_all(pins)) if pins else None

    def prefetch(self, digests: Iterable[str]) -> None:
        """Load vectors if there is room; returns at once."""
        wanted = list(digests)
        if wanted and len(self._prefetches) < MAX_PREFETCHES:
            task = asyncio.create_task(self._prefetch(wanted))
            self._prefetches.add(task)
            task.add_done_callback(self._prefetches.discard)

    async def close(self) -> None:
        """Give up what is under way."""
        tasks = [*self._prefetches, *([self._pinning] if self._pinning else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pin_all(self, pins: Sequence[str]) -> None:
        num_ready = 0
        self._progress(0, len(pins))
        try:
            for done, pin in enumerate(pins, 1):
                problem = await self._pin(pin)
                num_ready += problem is None
                if problem is not None:
                    self._announce(f"warning: pinned task vector {pin!r} not resident: {problem}")
                self._progress(done, len(pins))
        finally:
            self._progress(len(pins), len(pins))
        self._announce(f"warm: {num_ready} of {len(pins)} pinned task vectors are resident")

    async def _pin(self, pin: str) -> str | None:
        """Why a pinned vector is not resident now; None when it is."""
        try:
            found = await asyncio.to_thread(self._resolve, Reference.parse(pin))
            state = (await self._relay.prefetch([found.digest], pin=True))[found.digest]
        except (TaskVectorError, OSError) as error:
            return str(error)
        except Exception as error:
            log.exception("an error of the gateway itself")
            return repr(error)
        if state == MEMORY:
            return "the pool has no room for it; it is held in the host's memory (--pool-bytes)"
        return None if state == READY else state.removeprefix("failed: ")

    async def _prefetch(self, digests: Sequence[str]) -> None:
        with suppress(EngineUnavailable):  # it may be restarting, and nobody waits
            for digest, state in (await self._relay.prefetch(digests, pin=False)).items():
                log.debug("prefetched sha256:%s: %s", digest, state)
