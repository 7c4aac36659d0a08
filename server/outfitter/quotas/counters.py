"""Counts that several servers share through Redis or Valkey, and that each keeps for itself."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import redis
from limits.aio.storage import RedisStorage
from limits.aio.storage.redis.redispy import RedispyBridge
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from taskvectors.errors import TierUnavailable
from taskvectors.store.breaker import Breaker
from taskvectors.store.redis_client import RedisClient

log = logging.getLogger(__name__)

TIMEOUT_S = 0.025
"""How long a request waits for Redis, before its server's own counts must do."""
CHARGE_TIMEOUT_S = 1.0
"""The same for what nobody waits for."""
AWAY_S = 1.0
MAX_CONNECTIONS = 2


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
        self._shared, self._pool = (None, None) if url is None else _open(url, prefix)
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


class _Storage(RedisStorage):
    """The library's storage, which can count many at once."""

    async def count(self, counts: Sequence[Count]) -> list[int]:
        """Add to numbers, or read them, in one round trip. Raises RedisError, OSError.

        Each is told what it was after its own turn.
        """
        sums: dict[tuple[str, int], int] = {}
        seconds: dict[tuple[str, int], int] = {}
        for count in counts:
            place = count.key, count.window
            sums[place] = sums.get(place, 0) + count.amount
            seconds[place] = count.seconds
        after = dict(zip(sums, await self._add(sums, seconds), strict=True))
        now = {place: number - sums[place] for place, number in after.items()}
        numbers = []
        for count in counts:
            now[count.key, count.window] += count.amount
            numbers.append(now[count.key, count.window])
        return numbers

    async def _add(
        self, sums: Mapping[tuple[str, int], int], seconds: Mapping[tuple[str, int], int]
    ) -> list[int]:
        bridge = self.bridge
        assert isinstance(bridge, RedispyBridge)
        client: Any = bridge.get_connection()
        pipeline = client.pipeline(transaction=False)
        for (key, window), amount in sums.items():
            name = bridge.prefixed_key(f"{key}:{window}")
            if amount:
                pipeline.incrby(name, amount)
                pipeline.expire(name, 2 * seconds[key, window])
            else:
                pipeline.get(name)
        replies = await pipeline.execute()
        return [int(reply or 0) for reply in replies if not isinstance(reply, bool)]  # of `expire`


def _open(url: str, prefix: str) -> tuple[_Storage | None, BlockingConnectionPool | None]:
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
    storage = _Storage(
        f"async+{url.replace('unix://', 'redis+unix://')}",
        implementation="redispy",
        key_prefix=f"{prefix}:quota",
        connection_pool=pool,  # type: ignore[arg-type]
    )
    return storage, pool
