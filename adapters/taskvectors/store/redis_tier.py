"""Files in Redis or Valkey, shared by all replicas, within a byte budget and a time to live."""

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import redis

from taskvectors.errors import TierUnavailable, VectorNotFound
from taskvectors.store.breaker import Breaker
from taskvectors.store.counts import Counts
from taskvectors.store.redis_chunks import (
    MANIFEST,
    MAX_CHUNKS,
    MAX_MANIFEST,
    OPEN,
    Manifest,
    checksum,
)
from taskvectors.store.redis_client import RedisClient
from taskvectors.store.redis_index import RedisIndex
from taskvectors.store.redis_reader import read_values
from taskvectors.store.settings import REDIS, TierSettings
from taskvectors.store.tier import Progress, TierStats

log = logging.getLogger(__name__)

_WRITING_MS = 60_000
"""What a writer that died left behind is forgotten after this time."""
_REMEMBERED = 64


class RedisTier:
    """See Tier. A file is one hash (redis_chunks.py); the budget is kept by an index of them.

    Connects when it is first asked. Raises UnsupportedEngine for a URL that cannot be one.
    """

    name = REDIS

    def __init__(self, settings: TierSettings) -> None:
        assert settings.redis_url is not None
        self._settings = settings
        self._client = RedisClient(settings.redis_url, settings.redis_timeout_s)
        self._ttl_ms = settings.redis_ttl_s * 1000
        self._index = RedisIndex(
            self._client.get, settings.redis_prefix, settings.redis_bytes, self._ttl_ms
        )
        self._breaker = Breaker(f"Redis at {self._client.where}")
        self._counts = Counts()
        self._has_warned_full = False
        self._opened: dict[str, Manifest] = {}  # by `size`, for the `fill` that follows

    def size(self, digest: str) -> int | None:
        """One round trip; a damaged manifest is dropped and counts as a miss."""
        with self._asking():
            try:
                manifest = self._opened[digest] = self._open(digest)
                if len(self._opened) > _REMEMBERED:
                    self._opened.clear()
                return manifest.size
            except VectorNotFound:
                self._counts.add(misses=1)
                return None

    def fill(self, digest: str, buffer: memoryview, progress: Progress) -> None:
        """Chunk by chunk. Raises VectorNotFound when one is missing or damaged."""
        started = time.monotonic()
        with self._asking():
            try:
                self._fill(digest, buffer, progress)
            except VectorNotFound:
                self._counts.add(misses=1)
                raise
            self._touch(digest, buffer.nbytes)
        seconds = time.monotonic() - started
        self._counts.add(hits=1, read_bytes=buffer.nbytes, seconds=seconds)

    def head(self, digest: str, nbytes: int) -> bytes | None:
        """Reads the chunks that hold it, and checks them."""
        with self._asking(), suppress(VectorNotFound):
            manifest = self._open(digest)
            data = bytearray(min(nbytes, manifest.size))
            view, at = memoryview(data), 0
            while at < len(data):
                chunk = self._chunk(digest, manifest, at // manifest.chunk_bytes)
                part = chunk[: len(data) - at]
                view[at : at + len(part)] = part
                at += len(part)
            self._counts.add(read_bytes=at)
            return bytes(data)
        return None

    def put(self, digest: str, data: memoryview) -> bool:
        """False when the file is larger than the budget, or the server's memory is full."""
        if not 0 < data.nbytes <= self._settings.redis_bytes:
            return False
        manifest = Manifest.of(data)
        if len(manifest.sums) > MAX_CHUNKS:
            return False
        with self._asking():
            try:
                self._put(digest, manifest, data)
            except redis.ResponseError as error:
                if not isinstance(error, redis.OutOfMemoryError) and "OOM" not in str(error):
                    raise
                self._warn_full(error)
                return False
        return True

    def drop(self, digest: str) -> None:
        """Whatever is there, sound or not."""
        with self._asking():
            self._unlink(digest)

    def stats(self) -> TierStats:
        """nbytes is what this process saw last; it waits for nothing."""
        return replace(
            self._counts.stats,
            nbytes=self._index.nbytes,
            budget=self._settings.redis_bytes,
            is_up=self._breaker.is_up,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Failures of the server become TierUnavailable and open the breaker."""
        try:
            with self._breaker.calling(), self._client.translated():
                yield
        except TierUnavailable:
            self._counts.add(errors=1)
            raise

    def _key(self, digest: str) -> str:
        """The braces keep all keys of a file on one node of a cluster."""
        return f"{self._settings.redis_prefix}:{{{digest}}}"

    def _open(self, digest: str) -> Manifest:
        """The file's manifest, its time to live renewed. Raises VectorNotFound."""
        limits = (MAX_MANIFEST, MAX_CHUNKS, self._ttl_ms)
        try:
            answer = self._client.get().eval(OPEN, 1, self._key(digest), *limits)
        except redis.ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            raise self._damaged(digest, "its key holds something else") from error
        if answer is None:
            raise VectorNotFound(f"sha256:{digest} is not in Redis")
        try:
            return Manifest.parse(*answer)
        except VectorNotFound as error:
            raise self._damaged(digest, str(error)) from error

    def _fill(self, digest: str, buffer: memoryview, progress: Progress) -> None:
        manifest = self._opened.pop(digest, None) or self._open(digest)
        if manifest.size != buffer.nbytes:
            raise self._damaged(digest, f"it has {manifest.size} bytes, not {buffer.nbytes}")
        complete = (
            0 if self._client.is_cluster else self._stream(digest, manifest, buffer, progress)
        )
        for number in range(complete, len(manifest.sums)):
            start, end = manifest.bounds(number)
            buffer[start:end] = self._chunk(digest, manifest, number)
            progress(end)

    def _stream(
        self, digest: str, manifest: Manifest, buffer: memoryview, progress: Progress
    ) -> int:
        """Chunks straight into the buffer; returns how many came."""
        spans = [manifest.bounds(number) for number in range(len(manifest.sums))]

        def arrived(number: int, count: int) -> None:
            start, end = spans[number]
            if start + count == end and checksum(buffer[start:end]) != manifest.sums[number]:
                raise self._damaged(digest, f"chunk {number} is damaged")
            progress(start + count)

        return read_values(
            self._client.get(),
            [("HGET", self._key(digest), str(number)) for number in range(len(spans))],
            [buffer[start:end] for start, end in spans],
            self._settings.redis_timeout_s,
            arrived,
        )

    def _chunk(self, digest: str, manifest: Manifest, number: int) -> bytes:
        """Raises VectorNotFound, and drops the file, unless the chunk is there and sound."""
        start, end = manifest.bounds(number)
        data = self._client.get().hget(self._key(digest), str(number))
        if not isinstance(data, bytes) or len(data) != end - start:
            raise self._damaged(digest, f"chunk {number} is missing")
        if checksum(data) != manifest.sums[number]:
            raise self._damaged(digest, f"chunk {number} is damaged")
        return data

    def _put(self, digest: str, manifest: Manifest, data: memoryview) -> None:
        with suppress(VectorNotFound):
            if self._open(digest) == manifest:
                self._touch(digest, manifest.size)
                return
        evicted = self._index.reserve(digest, manifest.size)
        for gone in evicted:
            self._client.get().unlink(self._key(gone))
        self._counts.add(evictions=len(evicted))
        try:
            self._write(digest, manifest, data)
        except BaseException:
            with suppress(redis.RedisError, OSError):
                self._index.forget(digest)
            raise
        self._counts.add(written_bytes=manifest.size)
        if not self._index.has(digest):  # another's put needed the room while it was written
            self._client.get().unlink(self._key(digest))

    def _write(self, digest: str, manifest: Manifest, data: memoryview) -> None:
        """Under a name of its own, then renamed: nobody sees a part of a file."""
        client, key = self._client.get(), f"{self._key(digest)}:{uuid.uuid4().hex}"
        try:
            for number in range(len(manifest.sums)):
                start, end = manifest.bounds(number)
                client.hset(key, str(number), data[start:end])
                client.pexpire(key, _WRITING_MS)
            client.hset(key, MANIFEST, manifest.pack())
            client.pexpire(key, self._ttl_ms)
            client.rename(key, self._key(digest))
        except BaseException:
            with suppress(redis.RedisError, OSError):
                client.unlink(key)
            raise

    def _touch(self, digest: str, size: int) -> None:
        """A server that is full or read-only refuses, and may still be read."""
        with suppress(redis.ResponseError):
            self._index.touch(digest, size)

    def _damaged(self, digest: str, what: str) -> VectorNotFound:
        """Drop a file of which a part is wrong."""
        log.warning("sha256:%s is dropped from Redis: %s", digest, what)
        self._counts.add(corrupt=1)
        self._unlink(digest)
        return VectorNotFound(f"sha256:{digest} was damaged in Redis: {what}")

    def _unlink(self, digest: str) -> None:
        self._opened.pop(digest, None)
        self._client.get().unlink(self._key(digest))
        self._index.forget(digest)

    def _warn_full(self, error: Exception) -> None:
        if not self._has_warned_full:
            self._has_warned_full = True
            log.warning("Redis at %s takes no more files: %s", self._client.where, error)
