"""Warming in the API server: vectors are made ready before a request asks for them, or pinned."""

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Mapping
from typing import Protocol

from taskvectors.errors import TaskVectorError
from taskvectors.vllm_plugin.admission import UNANSWERED, Admission, Held
from taskvectors.vllm_plugin.pool import FAILED, LOADING, READY

logger = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own, to be shown with it

FIRST_POLL_S, LONGEST_POLL_S = 0.005, 0.25
MAX_AT_ONCE = 16
_NO_ROOM = FAILED + "it does not fit the pool beside the vectors in use; pin fewer"


class Worker(Protocol):
    """The worker's host memory, seen from the API server."""

    def prefetch(self, digests: list[str]) -> Awaitable[None]:
        """Start bringing vectors into host memory."""
        ...

    def prefetched(self, digests: list[str]) -> Awaitable[Mapping[str, str]]:
        """'loading', 'memory' or why not, by digest."""
        ...


class Warmer:
    """Makes vectors resident where there is room, else brings them into host memory.

    timeout_s: how long one of them may be under way. A pin is a reservation that nobody gives back.
    """

    def __init__(self, admission: Admission, worker: Worker, timeout_s: float) -> None:
        self._admission = admission
        self._worker = worker
        self._timeout_s = timeout_s
        self._pins: dict[str, Held] = {}
        self._turns = asyncio.Semaphore(MAX_AT_ONCE)

    async def warm(self, digests: Iterable[str], *, pin: bool) -> dict[str, str]:
        """The state that each was brought into: 'ready', 'memory' or 'failed: why'.

        Prefetching evicts nothing. A pin may, and fails where there is no room for it for good.
        """
        wanted = sorted(set(digests))
        states = await asyncio.gather(*(self._warm(digest, pin=pin) for digest in wanted))
        return dict(zip(wanted, states, strict=True))

    async def _warm(self, digest: str, *, pin: bool) -> str:
        async with self._turns:
            try:
                if digest in self._pins:
                    return READY
                if (held := await self._admission.hold(digest, may_evict=pin)) is None:
                    return _NO_ROOM if pin else await self._in_memory(digest)
            except TaskVectorError as error:
                return FAILED + str(error)
        if pin and digest not in self._pins:
            self._pins[digest] = held
        else:
            self._admission.release(held)
        return READY

    async def _in_memory(self, digest: str) -> str:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._worker.prefetch([digest])
                pause = FIRST_POLL_S
                while (state := await self._state(digest)) == LOADING:
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_POLL_S)
        except TimeoutError:
            return f"{FAILED}it was not loaded in {self._timeout_s:g} s"
        except Exception:
            logger.exception("the engine did not prefetch")
            return FAILED + UNANSWERED
        return state

    async def _state(self, digest: str) -> str:
        states = await self._worker.prefetched([digest])
        return states.get(digest, FAILED + "the engine has forgotten it; try again")
