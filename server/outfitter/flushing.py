"""What was counted in memory, written down every few seconds beside the requests."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

log = logging.getLogger(__name__)

FLUSH_S = 5.0


class Flusher:
    """flushes: called in a thread; each keeps for its next call what cannot be done now."""

    def __init__(self, *flushes: Callable[[], None]) -> None:
        self._flushes = flushes
        self._is_closing = asyncio.Event()

    async def run(self) -> None:
        """Write every few seconds until `close`, then once more."""
        await until_closed(self._is_closing, self._write, FLUSH_S, FLUSH_S)
        await self._write()

    def close(self) -> None:
        """Let `run` come to its end."""
        self._is_closing.set()

    async def _write(self) -> bool:
        return all([await tried(partial(_in_thread, flush)) for flush in self._flushes])


async def until_closed(
    is_closing: asyncio.Event, write: Callable[[], Awaitable[bool]], seconds: float, most: float
) -> None:
    """Write every so many seconds until told to close; less often, up to `most`, while it fails."""
    patience = seconds
    while not is_closing.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(is_closing.wait(), patience)
        patience = seconds if await write() else min(2 * patience, most)


async def tried(write: Callable[[], Awaitable[bool]]) -> bool:
    """Whether something was written; an error of ours must not end the writing of what follows."""
    try:
        return await write()
    except Exception:
        log.exception("what was counted could not be written")
        return False


async def _in_thread(flush: Callable[[], None]) -> bool:
    await asyncio.to_thread(flush)
    return True
