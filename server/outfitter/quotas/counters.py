"""Counts that several servers share through Redis or Valkey, and that each keeps for itself."""

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import redis

from outfitter.quotas.count import Count
from taskvectors.errors import TierUnavailable
from taskvectors.store.breaker import Breaker
from taskvectors.store.redis_client import RedisClient

if TYPE_CHECKING:
    from outfitter.quotas.shared import SharedStorage

log = logging.getLogger(__name__)

TIMEOUT_S = 0.025
"""How long a request waits for Redis, before its server's own counts must do."""
CHARGE_TIMEOUT_S = 1.0
"""The same for what nobody waits for."""
AWAY_S = 1.0


class Counters:
    """Numbers by key and window. Of each the server's own count is kept in any case.

    With Redis an answer is the count of all servers. While Redis does not answer, each server goes
    on with its own, and the log has one warning; see `Breaker`.
    """

    def __init__(self, url: str | None, prefix: str) -> None:
        self._own: dict[str, tuple[int, int]] = {}
        self._shared = _open(url, prefix)
        self._where = "" if url is None else RedisClient(url, TIMEOUT_S).where
        self._breaker = Breaker(f"Redis at {self._where}, for quotas,", away_s=AWAY_S)
        self._num_shared = self._num_own = 0
        self._asked: list[tuple[Sequence[Count], asyncio.Future[list[int]]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def count(self, counts: Sequence[Count], *, timeout_s: float | None = None) -> list[int]:
        """Add to numbers and return them; never raises for Redis, and soon gives up on it."""
        own = [self._add(count) for count in counts]
        if self._shared is None or not counts:
            return own
        try:
            with self._breaker.calling():
                found = await self._ask(counts, timeout_s or TIMEOUT_S)
        except TierUnavailable:
            self._num_own += 1
            return own
        self._num_shared += 1
        return [max(pair) for pair in zip(own, found, strict=True)]

    def stats(self) -> dict[str, Any]:
        """is_shared: whether Redis is used. own: answers that had to do without it."""
        is_shared = self._shared is not None
        return {
            "is_shared": is_shared,
            "is_up": self._breaker.is_up,
            "shared": self._num_shared,
            "own": self._num_own,
        }

    async def close(self) -> None:
        """Close the connections."""
        if self._asking is not None:
            await asyncio.wait({self._asking})
        if self._shared is not None:
            await self._shared.close()

    def _add(self, count: Count) -> int:
        window, number = self._own.get(count.key, (count.window, 0))
        number = count.amount + (number if window == count.window else 0)
        self._own[count.key] = (count.window, number)
        return number

    async def _ask(self, counts: Sequence[Count], timeout_s: float) -> list[int]:
        """Raises TierUnavailable."""
        answer: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._asked.append((counts, answer))
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_all())
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except (TimeoutError, redis.TimeoutError) as error:
            raise TierUnavailable(f"no answer within {timeout_s:g} s") from error
        except (redis.RedisError, OSError) as error:
            raise TierUnavailable(str(error)) from error

    async def _ask_all(self) -> None:
        """One round trip for all who ask meanwhile, and so on."""
        assert self._shared is not None
        while self._asked:
            asked, self._asked = self._asked, []
            counts = [count for some, _ in asked for count in some]
            try:
                numbers = iter(await self._shared.count(counts))
            except (redis.RedisError, OSError) as error:
                for _, answer in asked:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for some, answer in asked:
                found = [next(numbers) for _ in some]
                if not answer.done():  # else it was not waited for
                    answer.set_result(found)


def _open(url: str | None, prefix: str) -> "SharedStorage | None":
    """None without a URL, and for a cluster."""
    if url is None:
        return None
    if RedisClient(url, TIMEOUT_S).is_cluster:
        log.warning("quotas are counted by each server for itself: a Redis cluster is not asked")
        return None
    from outfitter.quotas.shared import SharedStorage  # slow to import

    return SharedStorage(url, f"{prefix}:quota", CHARGE_TIMEOUT_S)
