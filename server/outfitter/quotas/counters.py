"""Counts that several servers share through Redis or Valkey, and that each keeps for itself."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import redis
from limits.aio.storage import RedisStorage
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from taskvectors.errors import TierUnavailable
from taskvectors.store.breaker import Breaker
from taskvectors.store.redis_client import RedisClient

log = logging.getLogger(__name__)

TIMEOUT_S = 0.01
"""How long a request waits for Redis, before its server's own counts must do."""
CHARGE_TIMEOUT_S = 1.0
"""The same for what nobody waits for."""
AWAY_S = 1.0
MAX_CONNECTIONS = 32


@dataclass(frozen=True)
class Count:
    """One number to add to, or to read where `amount` is 0.

    key: which limit of whom. window: its number; a new one begins at zero. seconds: how long a
    window is.
    """

    key: str
    window: int
    amount: int
    seconds: int


class Counters:
    """Numbers by key and window. Of each the server's own count is kept in any case.

    With Redis an answer is the count of all servers. While Redis does not answer, each server goes
    on with its own, and the log has one warning; see `Breaker`.
    """

    def __init__(self, url: str | None, prefix: str) -> None:
        self._own: dict[str, tuple[int, int]] = {}
        self._prefix = f"{prefix}:quota"
        self._shared, self._pool = (None, None) if url is None else _open(url, prefix)
        self._where = "" if url is None else RedisClient(url, TIMEOUT_S).where
        self._breaker = Breaker(f"Redis at {self._where}, for quotas,", away_s=AWAY_S)
        self._num_shared = self._num_own = 0

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
        if self._pool is not None:
            with suppress(redis.RedisError, OSError):
                await self._pool.disconnect()

    def _add(self, count: Count) -> int:
        window, number = self._own.get(count.key, (count.window, 0))
        number = count.amount + (number if window == count.window else 0)
        self._own[count.key] = (count.window, number)
        return number

    async def _ask(self, counts: Sequence[Count], timeout_s: float) -> list[int]:
        """Raises TierUnavailable."""
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.gather(*(self._ask_one(count) for count in counts))
        except (TimeoutError, redis.TimeoutError) as error:
            raise TierUnavailable(f"no answer within {timeout_s:g} s") from error
        except (redis.RedisError, OSError) as error:
            raise TierUnavailable(str(error)) from error

    async def _ask_one(self, count: Count) -> int:
        assert self._shared is not None
        key = f"{self._prefix}:{count.key}:{count.window}"
        if count.amount:
            return await self._shared.incr(key, 2 * count.seconds, count.amount)
        return await self._shared.get(key)


def _open(url: str, prefix: str) -> tuple[RedisStorage | None, BlockingConnectionPool | None]:
    """Connects when it is first asked; None for a cluster."""
    if RedisClient(url, TIMEOUT_S).is_cluster:
        log.warning("quotas are counted by each server for itself: a Redis cluster is not asked")
        return None, None
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=MAX_CONNECTIONS,
        timeout=None,
        socket_timeout=CHARGE_TIMEOUT_S,
        socket_connect_timeout=CHARGE_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )
    storage = RedisStorage(
        f"async+{url.replace('unix://', 'redis+unix://')}",
        implementation="redispy",
        key_prefix=prefix,
        connection_pool=pool,  # type: ignore[arg-type]
    )
    return storage, pool
