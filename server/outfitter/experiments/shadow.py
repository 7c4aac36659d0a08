"""Copies of requests for shadow variants: sent after the answer, within bounds, to nobody."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from outfitter.errors import ApiError

log = logging.getLogger(__name__)

MAX_RUNNING = 4
MAX_WAITING = 256
MAX_BYTES = 16 * 2**20
"""Of all bodies that wait."""
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Copy:
    """A request to be sent once more. send: does so; may raise ApiError. nbytes: of its body."""

    send: Callable[[], Awaitable[None]]
    nbytes: int


@dataclass
class Numbers:
    """What became of copies. dropped: never sent, as there were too many, or requests waited."""

    sent: int = 0
    failed: int = 0
    dropped: int = 0


class Shadows:
    """Sends copies, a few at a time, and holds a few more; what is too much is dropped.

    has_room: false while requests of clients wait for their turn; then nothing is sent.
    """

    def __init__(self, has_room: Callable[[], bool]) -> None:
        self._has_room = has_room
        self._waiting: deque[Copy] = deque()
        self._nbytes = 0
        self._num_running = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.numbers = Numbers()

    @property
    def num_pending(self) -> int:
        """Copies that are being sent, or wait."""
        return self._num_running + len(self._waiting)

    def offer(self, copy: Copy) -> None:
        """Send it soon, or drop it; returns at once."""
        is_full = len(self._waiting) >= MAX_WAITING or self._nbytes + copy.nbytes > MAX_BYTES
        if is_full or not self._has_room():
            self.numbers.dropped += 1
            return
        self._waiting.append(copy)
        self._nbytes += copy.nbytes
        if self._num_running < MAX_RUNNING:
            self._num_running += 1
            task = asyncio.create_task(self._send_all())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Drop what waits, and abort what is being sent."""
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                copy = self._waiting.popleft()
                self._nbytes -= copy.nbytes
                if self._has_room():
                    await self._send(copy)
                else:
                    self.numbers.dropped += 1
        finally:
            self._num_running -= 1

    async def _send(self, copy: Copy) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await copy.send()
            self.numbers.sent += 1
        except (ApiError, TimeoutError) as error:
            self.numbers.failed += 1
            log.info("a shadow request failed: %r", error)
        except Exception:  # nobody waits for it, and the others are to be sent
            self.numbers.failed += 1
            log.exception("a shadow request failed")
