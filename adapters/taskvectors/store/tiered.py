"""The chain of tiers: a file comes from the first that gives the right bytes."""

import logging
import mmap
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

from taskvectors.container import LENGTH, check_header_size
from taskvectors.container.layout import parse_container
from taskvectors.errors import InvalidFile, StoreFull, TierUnavailable, VectorNotFound
from taskvectors.format import FileHeader
from taskvectors.format.header import parse_header
from taskvectors.format.reader import read_header
from taskvectors.store.counts import Counts
from taskvectors.store.directory import DirectoryStore
from taskvectors.store.disk import DiskTier
from taskvectors.store.headers import HeaderCache
from taskvectors.store.memory import Allocate, MemoryTier, plain_pages
from taskvectors.store.running_digest import RunningDigest
from taskvectors.store.settings import DISK, MEMORY, ORIGIN, REDIS, TierSettings
from taskvectors.store.single_flight import SingleFlight
from taskvectors.store.spreading import Spreader
from taskvectors.store.tier import Durable, StoredFile, Tier, TierStats

log = logging.getLogger(__name__)

MAX_FILE = 64 << 30
"""A tier that claims more for one file is not believed, and nothing is allocated for it."""
_FIRST_HEAD = 64 << 10
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


class TieredFiles:
    """Task vector files by digest, from memory, Redis, the disk or the shared origin.

    root: of the directory store. with_memory: keep what was loaded in host memory. allocate: makes
    the buffers of that. Every method may be called from many threads at once. Composed loadouts
    are found on the local disk, and nowhere else.
    """

    def __init__(
        self,
        root: Path,
        settings: TierSettings,
        *,
        with_memory: bool,
        allocate: Allocate | None = None,
    ) -> None:
        self.store = DirectoryStore(root)
        self._disk = DiskTier(self.store)
        has_memory = with_memory and settings.memory_bytes > 0 and MEMORY in settings.order
        self._memory = (
            MemoryTier(settings.memory_bytes, allocate or plain_pages) if has_memory else None
        )
        self._chain = _chain(settings, self._disk)
        self._keepers = [tier for tier in self._chain if tier.name in settings.order]
        self._counts = {tier.name: Counts() for tier in self._chain}
        self._headers = HeaderCache()
        self._loads: SingleFlight[memoryview] = SingleFlight()
        self._paths: SingleFlight[Path] = SingleFlight()
        self._spreader = Spreader()
        self._timing = threading.Lock()
        self.num_loads, self.load_seconds = 0, 0.0

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """In the order in which a load asks them."""
        return (*([self._memory] if self._memory else []), *self._chain)

    def load(self, digest: str) -> memoryview:
        """The whole file, its digest checked; it is read once for all who ask meanwhile.

        Raises VectorNotFound; TierUnavailable when a tier that may have it does not answer.
        """
        key = _key(digest)
        if self._memory is not None and (data := self._memory.find(key)) is not None:
            return data
        return self._loads.do(key, lambda: self._load(key))

    def header(self, digest: str) -> FileHeader:
        """The file's checked header; no tensor is read. Raises VectorNotFound, TierUnavailable."""
        key = _key(digest)
        return self._headers.get(key, lambda: self._header(key))

    def forget_header(self, digest: str) -> None:
        """Read the header anew the next time: unlike a load's, its digest was never checked."""
        self._headers.forget(_key(digest))

    def path(self, digest: str) -> Path:
        """Where the file lies on the local disk, brought there if need be.

        Raises VectorNotFound, TierUnavailable, StoreFull.
        """
        try:
            return self._disk.path(_key(digest))
        except VectorNotFound:
            return self._paths.do(_key(digest), lambda: self._make_local(_key(digest)))

    def heal(self, digest: str) -> bool:
        """Read the local file again; a damaged one is fetched anew. Whether it was damaged.

        Raises VectorNotFound, TierUnavailable, StoreFull when it cannot be had.
        """
        key = _key(digest)
        if self._disk.size(key) is not None and self._disk.is_sound(key):
            return False
        self._headers.forget(key)
        self.path(key)
        return True

    def spread(self, digest: str) -> None:
        """Put a file of the local disk into the tiers that replicas share.

        Redis may be away or full. Raises TierUnavailable, StoreFull when the origin is, and
        VectorNotFound.
        """
        shared = [tier for tier in self._chain if tier.name in (ORIGIN, REDIS)]
        if not shared:
            return
        self.heal(digest)
        with _mapped(self._disk.path(_key(digest))) as data:
            self._put_into(shared, _key(digest), data)

    def _put_into(self, shared: list[Tier], key: str, data: memoryview) -> None:
        """The origin first: only it must succeed."""
        for tier in sorted(shared, key=lambda tier: tier.name != ORIGIN):
            try:
                is_kept = tier.put(key, data)
            except TierUnavailable as error:
                if tier.name == ORIGIN:
                    raise
                log.warning("sha256:%s was not copied to %s: %s", key, tier.name, error)
            else:
                if tier.name == ORIGIN and not is_kept:
                    raise StoreFull(f"no room for sha256:{key} in the origin; make room there")

    def files(self) -> Iterator[StoredFile]:
        """What the disk and the origin keep; a file of both once, as new as its newer copy.

        Raises TierUnavailable.
        """
        found: dict[str, StoredFile] = {}
        for tier in self._chain:
            if tier.name != REDIS:
                for file in cast(Durable, tier).files():
                    other = found.get(file.digest)
                    if other is None or other.modified < file.modified:
                        found[file.digest] = file
        yield from found.values()

    def drop(self, digest: str) -> None:
        """Forget a file in every tier; from the disk last.

        Raises TierUnavailable when the disk or the origin does not answer; then the disk keeps it.
        """
        key = _key(digest)
        self._headers.forget(key)
        for tier in sorted(
            self.tiers, key=lambda tier: (MEMORY, REDIS, ORIGIN, DISK).index(tier.name)
        ):
            try:
                tier.drop(key)
            except TierUnavailable as error:
                if tier.name != REDIS:
                    raise
                log.warning("sha256:%s may still be in Redis: %s", key, error)

    def stats(self) -> dict[str, TierStats]:
        """What each tier has done, by its name."""
        found = {} if self._memory is None else {MEMORY: self._memory.stats()}
        return found | {tier.name: self._stats(tier) for tier in self._chain}

    def settle(self, timeout_s: float = 10.0) -> bool:
        """Wait until what was loaded is in the faster tiers, too; False when it takes longer."""
        return self._spreader.settle(timeout_s)

    def close(self) -> None:
        """Stop filling tiers, and close connections."""
        self._spreader.close()
        for tier in self._chain:
            if callable(close := getattr(tier, "close", None)):
                close()

    def _stats(self, tier: Tier) -> TierStats:
        """A load's view of hits, misses and time; the tier's own of the rest."""
        own, seen = tier.stats(), self._counts[tier.name].stats
        return replace(
            own,
            hits=seen.hits,
            misses=seen.misses,
            errors=max(own.errors, seen.errors),
            corrupt=own.corrupt + seen.corrupt,
            read_bytes=seen.read_bytes,
            seconds=seen.seconds,
        )

    def _load(self, key: str) -> memoryview:
        if self._memory is not None:
            if (data := self._memory.find(key)) is not None:  # of a load that has just ended
                return data
            self._memory.missed()
        begin = time.perf_counter()
        data = self._load_cold(key)
        with self._timing:
            self.num_loads += 1
            self.load_seconds += time.perf_counter() - begin
        return data

    def _load_cold(self, key: str) -> memoryview:
        away: TierUnavailable | None = None
        is_composed = self._disk.is_composed(key)
        for tier in [self._disk] if is_composed else self._chain:
            try:
                buffer = self._read(tier, key)
            except TierUnavailable as error:
                self._counts[tier.name].add(errors=1)
                away = error
                continue
            if buffer is None:
                continue
            if self._memory is not None:
                self._memory.keep(key, buffer)
            data = buffer.toreadonly()
            if not is_composed and (missing := self._lacking(tier)):
                self._spreader.spread(key, data, missing)
            return data
        if away is not None:
            raise TierUnavailable(f"task vector sha256:{key} is out of reach now: {away}") from away
        raise VectorNotFound(f"no tier of the store has a sound task vector sha256:{key}")

    def _lacking(self, source: Tier) -> list[Tier]:
        """The tiers to fill after a load from `source`: the disk, and Redis if it is faster."""
        faster = self._chain[: self._chain.index(source)]
        return [
            tier
            for tier in self._keepers
            if tier is not source and (tier.name == DISK or (tier.name == REDIS and tier in faster))
        ]

    def _read(self, tier: Tier, key: str) -> memoryview | None:
        """The file as this tier has it, if that is right; what is wrong is dropped there."""
        counts, begin = self._counts[tier.name], time.perf_counter()
        for _ in range(2):  # a sound file on disk may be replaced between its size and its bytes
            buffer, actual = self._fill(tier, key)
            if buffer is None:
                break
            counts.add(read_bytes=buffer.nbytes, seconds=time.perf_counter() - begin)
            if actual == key:
                counts.add(hits=1)
                return buffer
            if not self._is_worth_another(tier, key):
                break
        counts.add(misses=1)
        return None

    def _fill(self, tier: Tier, key: str) -> tuple[memoryview | None, str]:
        """What the tier has, and its digest. Raises TierUnavailable."""
        size = tier.size(key)
        if size is None:
            return None, ""
        buffer = self._allocate(tier, size)
        with RunningDigest(buffer) as digest:
            try:
                tier.fill(key, buffer, digest.advance)
            except VectorNotFound:
                return None, ""
            return buffer, digest.finish()

    def _is_worth_another(self, tier: Tier, key: str) -> bool:
        """Drop what was wrong; True where a second look finds it sound.

        Not from the origin: it may be the last copy, and the fault may be on the way.
        """
        if tier is self._disk and self._disk.is_sound(key):
            return True
        self._counts[tier.name].add(corrupt=1)
        log.warning("sha256:%s was damaged in %s", key, tier.name)
        if tier is not self._disk and tier.name != ORIGIN:
            tier.drop(key)
        return False

    def _allocate(self, tier: Tier, size: int) -> memoryview:
        """Raises TierUnavailable for a size that cannot be."""
        if not 0 <= size <= MAX_FILE:
            raise TierUnavailable(f"{tier.name} claims a file of {size} bytes")
        try:
            if self._memory is not None and size <= self._memory.budget:
                return self._memory.allocate(size)
        except (MemoryError, RuntimeError) as error:  # there are other pages than pinned ones
            log.warning("no memory of the host's cache for %d bytes: %s", size, error)
        try:
            return plain_pages(size)
        except MemoryError as error:
            raise TierUnavailable(f"no memory for a file of {size} bytes") from error

    def _header(self, key: str) -> FileHeader:
        away: TierUnavailable | None = None
        others = [tier for tier in self.tiers if tier is not self._disk]
        for tier in (self._disk, *others):
            try:
                if (header := self._header_in(tier, key)) is not None:
                    return header
            except TierUnavailable as error:
                away = error
        if away is not None:
            raise TierUnavailable(f"task vector sha256:{key} is out of reach now: {away}") from away
        raise VectorNotFound(f"no task vector sha256:{key}")

    def _header_in(self, tier: Tier, key: str) -> FileHeader | None:
        try:
            return _local_header(tier, key) if isinstance(tier, DiskTier) else _header_of(tier, key)
        except (VectorNotFound, FileNotFoundError):
            return None
        except OSError as error:
            raise TierUnavailable(f"{tier.name} does not answer: {error.strerror}") from error
        except InvalidFile:
            if self._is_worth_another(tier, key):  # it is what its digest says: no good file
                raise
            return None

    def _make_local(self, key: str) -> Path:
        data = self.load(key)
        if not self._disk.put(key, data):
            raise StoreFull(f"no room on the local disk for sha256:{key}; make room there")
        return self._disk.path(key)


def _chain(settings: TierSettings, disk: DiskTier) -> list[Tier]:
    """The tiers that a load asks behind memory; the disk is always one of them."""
    chain: list[Tier] = []
    for name in dict.fromkeys((*settings.order, DISK)):
        if name == DISK:
            chain.append(disk)
        elif name == REDIS and settings.redis_url:
            from taskvectors.store.redis_tier import RedisTier  # where it is used

            chain.append(RedisTier(settings))
        elif name == ORIGIN and settings.origin_url:
            from taskvectors.store.origin import OriginTier  # where it is used

            chain.append(OriginTier(settings.origin_url))
    return chain


@contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    """The file's bytes, which take no memory of this process."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages,
        memoryview(pages) as data,
    ):
        yield data


def _local_header(tier: DiskTier, key: str) -> FileHeader:
    return read_header(tier.path(key))


def _header_of(tier: Tier, key: str) -> FileHeader | None:
    """From the first bytes, in one look for most files. Raises InvalidFile, TierUnavailable."""
    size, head = tier.size(key), tier.head(key, _FIRST_HEAD)
    if size is None or head is None or len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head[: LENGTH.size])
    check_header_size(length, size)
    if len(head) < LENGTH.size + length:
        head = tier.head(key, LENGTH.size + length)
    if head is None or len(head) < LENGTH.size + length:
        return None
    return parse_header(parse_container(head[: LENGTH.size + length], size))


def _key(digest: str) -> str:
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise VectorNotFound(f"{digest[:80]!r} is no digest; use 64 hex digits")
    return match[1]
