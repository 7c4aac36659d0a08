"""What was counted in memory, written down every few seconds beside the requests."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

log = logging.getLogger(__name__)

FLUSH_S = 5.0


class Flusher:
    """flushes: called in a thread; each keeps for its next call what cannot be done now."""

    def __init__(self, *flushes: Callable[[], None]) -> None:
        self._flushes = flushes
        self._is_closing = asyncio.Event()

    async def run(self) -> None:
        """Write every few seconds until `close`, then once more."""
        while not self._is_closing.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_closing.wait(), FLUSH_S)
            await self._write()
        await self._write()

    def close(self) -> None:
        """Let `run` come to its end."""
        self._is_closing.set()

    async def _write(self) -> None:
        for flush in self._flushes:
            try:
                await asyncio.to_thread(flush)
            except Exception:  # it must not end the writing of what follows
                log.exception("what was counted could not be written")
