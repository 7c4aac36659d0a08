"""Warming in the API server: vectors are made ready before a request asks for them, or pinned."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

from taskvectors.errors import TaskVectorError
from taskvectors.vllm_plugin.admission import UNANSWERED, Admission, Held, failure_of
from taskvectors.vllm_plugin.pool import FAILED, LOADING, READY, failure

logger = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own, to be shown with it

FIRST_POLL_S, LONGEST_POLL_S = 0.005, 0.25
MAX_AT_ONCE = 16
_NO_ROOM = FAILED + "it does not fit the pool beside the vectors in use; pin fewer"
PINNED_SHARE = 0.5
"""Of the pool's bytes, and of its columns: the rest is always there for what is not pinned."""


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

    timeout_s: how long one of them may be under way. A pin is a reservation that nobody gives back,
    so all of them together take at most half of the pool's bytes, and half of its columns.
    """

    def __init__(self, admission: Admission, worker: Worker, timeout_s: float) -> None:
        self._admission = admission
        self._worker = worker
        self._timeout_s = timeout_s
        self._pins: dict[str, Held] = {}
        self._turns = asyncio.Semaphore(MAX_AT_ONCE)
        self._pinning = asyncio.Lock()

    async def warm(self, digests: Iterable[str], *, pin: bool) -> dict[str, str]:
        """The state that each was brought into: 'ready', 'memory' or 'failed: why'.

        Prefetching evicts nothing. A pin may, and fails where there is no room for it for good;
        then it has evicted nothing, either. Pins are brought in one after another.
        """
        bring = self._pin if pin else self._prefetch
        wanted = sorted(set(digests))
        states = await asyncio.gather(*(self._warm(digest, bring) for digest in wanted))
        return dict(zip(wanted, states, strict=True))

    async def _warm(self, digest: str, bring: Callable[[str], Awaitable[str]]) -> str:
        try:
            return await bring(digest)
        except TaskVectorError as error:
            return FAILED + str(error)
        except Exception as error:
            logger.exception("task vector sha256:%s was not warmed", digest)
            return failure(error)

    async def _prefetch(self, digest: str) -> str:
        async with self._turns:
            if (held := await self._admission.hold(digest, may_evict=False)) is None:
                return await self._in_memory(digest)
        self._admission.release(held)
        return READY

    async def _pin(self, digest: str) -> str:
        async with self._pinning:
            if digest in self._pins:
                return READY
            if problem := self._too_much(await self._admission.nbytes(digest)):
                return FAILED + problem
            if (held := await self._admission.hold(digest, may_evict=True)) is None:
                return _NO_ROOM
            self._pins[digest] = held
            return READY

    def _too_much(self, nbytes: int) -> str | None:
        """Why a vector of so many bytes may not be pinned beside the others, if so."""
        pinned = sum(
            entry.nbytes for held in self._pins.values() for entry in held.reservation.entries
        )
        most_bytes, most = (int(PINNED_SHARE * limit) for limit in self._admission.limits)
        if pinned + nbytes > most_bytes:
            return (
                f"its {nbytes} bytes and the {pinned} of other pins are more than {most_bytes},"
                " half of the pool; pin fewer, or use a larger --pool-bytes"
            )
        if len(self._pins) >= most:
            return f"at most {most} vectors are pinned, half of what the pool holds; pin fewer"
        return None

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
        error = failure_of(digest, state)
        return state if error is None else FAILED + str(error)

    async def _state(self, digest: str) -> str:
        states = await self._worker.prefetched([digest])
        return states.get(digest, FAILED + "the engine has forgotten it; try again")
