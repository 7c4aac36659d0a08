"""Counts in Redis or Valkey, through the library of rate limits."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import redis
from limits.aio.storage import RedisStorage
from limits.aio.storage.redis.redispy import RedispyBridge
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from outfitter.quotas.count import Count

MAX_CONNECTIONS = 2


class SharedStorage(RedisStorage):
    """The library's storage, which can count many at once. Connects when it is first asked.

    timeout_s: of connecting and of each wait for bytes.
    """

    def __init__(self, url: str, prefix: str, timeout_s: float) -> None:
        self._connections = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=None,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        super().__init__(
            f"async+{url.replace('unix://', 'redis+unix://')}",
            implementation="redispy",
            key_prefix=prefix,
            connection_pool=self._connections,  # type: ignore[arg-type]
        )

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

    async def close(self) -> None:
        """Close the connections."""
        with suppress(redis.RedisError, OSError):
            await self._connections.disconnect()
