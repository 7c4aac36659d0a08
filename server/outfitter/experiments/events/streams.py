"""Events in a stream of Redis or Valkey, which every gateway of a database fills and empties."""

import asyncio
import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import redis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from taskvectors.errors import TierUnavailable

log = logging.getLogger(__name__)

APPEND_TIMEOUT_S = 0.1
"""How long an answer waits for Redis, before the journal must do."""
READ_TIMEOUT_S = 5.0
MAX_LENGTH = 200_000
"""Events that may wait in the stream; further ones go to the journals."""
BATCH = 500
CLAIM_AFTER_S = 15.0
"""Whoever has read an event and did not finish it within this time is taken for dead."""
FORGET_AFTER_S = 3600.0
GROUP = "writers"
_FIELD = b"e"

Entry = tuple[bytes, bytes]
"""Id and line."""


class Stream:
    """A stream with one group of consumers; this process is one of them.

    Every method raises TierUnavailable.
    """

    def __init__(
        self, url: str, key: str, max_length: int = MAX_LENGTH, claim_after_s: float = CLAIM_AFTER_S
    ) -> None:
        self._key, self._max_length, self._claim_after_s = key, max_length, claim_after_s
        self._name = uuid.uuid4().hex
        self._appending = _client(url, APPEND_TIMEOUT_S)
        self._reading = _client(url, READ_TIMEOUT_S)
        self._asked: list[tuple[bytes, asyncio.Future[None]]] = []
        self._adding: asyncio.Task[None] | None = None
        self._length = 0
        self._next_claim = 0.0

    async def append(self, line: bytes) -> None:
        """Return once the line is in the stream, which it may be twice."""
        if self._length >= self._max_length:
            raise TierUnavailable(f"{self._length} events wait to be written")
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked.append((line, answer))
        if self._adding is None or self._adding.done():
            self._adding = asyncio.create_task(self._add_all())
        with _translated():
            async with asyncio.timeout(APPEND_TIMEOUT_S):
                await answer

    async def read(self) -> list[Entry]:
        """Events that nobody has read, and from time to time those of whoever died over them."""
        with _translated():
            try:
                found = await self._claimed() if time.monotonic() >= self._next_claim else []
                return found or await self._new()
            except redis.ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                await self._make_group()
                return await self._new()

    async def done(self, ids: Sequence[bytes]) -> None:
        """They are in the database."""
        with _translated():
            pipeline = self._reading.pipeline(transaction=False)
            pipeline.xack(self._key, GROUP, *ids)
            pipeline.xdel(self._key, *ids)
            pipeline.xlen(self._key)
            *_, length = await pipeline.execute()
            self._length = int(length)

    async def close(self) -> None:
        """Leave the group, unless something that we have read is not done."""
        if self._adding is not None:
            await asyncio.wait({self._adding})
        with suppress(redis.RedisError, OSError, TimeoutError):
            if not (await self._reading.xpending_range(self._key, GROUP, "-", "+", 1, self._name)):
                await self._reading.xgroup_delconsumer(self._key, GROUP, self._name)
        for client in (self._appending, self._reading):
            with suppress(redis.RedisError, OSError):
                await client.aclose()

    async def _add_all(self) -> None:
        """One round trip for all who ask meanwhile, and so on."""
        while self._asked:
            asked, self._asked = self._asked, []
            try:
                pipeline = self._appending.pipeline(transaction=False)
                for line, _ in asked:
                    pipeline.xadd(self._key, {_FIELD: line})
                await pipeline.execute()
            except (redis.RedisError, OSError) as error:
                for _, answer in asked:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            self._length += len(asked)
            for _, answer in asked:
                if not answer.done():  # else it was not waited for
                    answer.set_result(None)

    async def _new(self) -> list[Entry]:
        found: Any = await self._reading.xreadgroup(GROUP, self._name, {self._key: ">"}, BATCH)
        entries = _entries(found[0][1]) if found else []
        if not entries:
            self._length = int(await self._reading.xlen(self._key))
        return entries

    async def _claimed(self) -> list[Entry]:
        """Those of the dead, who are struck off the group when they have been silent for long."""
        idle_ms = int(self._claim_after_s * 1000)
        told: Any = await self._reading.xautoclaim(
            self._key, GROUP, self._name, idle_ms, "0-0", BATCH
        )
        entries = _entries(told[1])
        if not entries:
            self._next_claim = time.monotonic() + self._claim_after_s / 2
            await self._strike_off()
        return entries

    async def _strike_off(self) -> None:
        for consumer in await self._reading.xinfo_consumers(self._key, GROUP):
            is_gone = consumer["idle"] > FORGET_AFTER_S * 1000 and consumer["pending"] == 0
            if is_gone and consumer["name"] != self._name.encode():
                await self._reading.xgroup_delconsumer(self._key, GROUP, consumer["name"])

    async def _make_group(self) -> None:
        try:
            await self._reading.xgroup_create(self._key, GROUP, "0", mkstream=True)
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise


def _client(url: str, timeout_s: float) -> "Redis":
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=1,
        timeout=None,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )
    return Redis(connection_pool=pool)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (redis.TimeoutError, TimeoutError) as error:
        raise TierUnavailable("Redis did not answer in time") from error
    except (redis.RedisError, OSError) as error:
        raise TierUnavailable(str(error)) from error


def _entries(found: Sequence[Any]) -> list[Entry]:
    """Those whose fields are still there; a deleted one is claimed without."""
    return [(id_, (fields or {}).get(_FIELD, b"")) for id_, fields in found]
