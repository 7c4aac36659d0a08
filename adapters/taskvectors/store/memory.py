"""The tier in this process's own memory: whole checked files, least recently used out first."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from threading import Lock

import numpy as np

from taskvectors.errors import VectorNotFound
from taskvectors.store.counts import Counts
from taskvectors.store.settings import MEMORY
from taskvectors.store.tier import Progress, TierStats

Allocate = Callable[[int], memoryview]
"""A writable buffer of so many bytes. Raises MemoryError."""


def plain_pages(nbytes: int) -> memoryview:
    """Memory as the system gives it, not set to zero first."""
    return np.empty(nbytes, dtype=np.uint8).data


class MemoryTier:
    """Files within `budget` bytes.

    allocate: makes the buffers; on a GPU they are pinned pages. A buffer is never written again,
    and lives for as long as anybody holds a view of it, evicted or not.
    """

    name = MEMORY

    def __init__(self, budget: int, allocate: Allocate = plain_pages) -> None:
        self.budget = budget
        self.allocate = allocate
        self._kept: OrderedDict[str, memoryview] = OrderedDict()
        self._nbytes = 0
        self._counts = Counts()
        self._lock = Lock()

    def find(self, digest: str) -> memoryview | None:
        """The file itself, read-only, without a copy; now the most recently used."""
        with self._lock:
            if (data := self._kept.get(digest)) is None:
                return None
            self._kept.move_to_end(digest)
        self._counts.add(hits=1, read_bytes=data.nbytes)
        return data

    def missed(self) -> None:
        """Count a load that had to ask elsewhere."""
        self._counts.add(misses=1)

    def keep(self, digest: str, buffer: memoryview) -> bool:
        """Take over a buffer that holds a checked file, without a copy; False when too large."""
        if buffer.nbytes > self.budget:
            return False
        with self._lock:
            if digest in self._kept:
                return True
            self._kept[digest] = buffer.toreadonly()
            self._nbytes += buffer.nbytes
            evicted = self._evict()
        self._counts.add(written_bytes=buffer.nbytes, evictions=evicted)
        return True

    def size(self, digest: str) -> int | None:
        """Bytes of the file; None when it is not here."""
        with self._lock:
            data = self._kept.get(digest)
        return None if data is None else data.nbytes

    def fill(self, digest: str, buffer: memoryview, progress: Progress) -> None:
        """Copy the file into `buffer`; raises VectorNotFound."""
        data = self.find(digest)
        if data is None or data.nbytes != buffer.nbytes:
            raise VectorNotFound(f"sha256:{digest} is not in memory")
        buffer[:] = data
        progress(data.nbytes)

    def head(self, digest: str, nbytes: int) -> bytes | None:
        """The first bytes of the file; None when it is not here."""
        with self._lock:
            data = self._kept.get(digest)
        return None if data is None else bytes(data[:nbytes])

    def put(self, digest: str, data: memoryview) -> bool:
        """Keep a copy of a checked file; False when there is no room."""
        if data.nbytes > self.budget:
            return False
        try:
            buffer = self.allocate(data.nbytes)
        except (MemoryError, RuntimeError):  # an allocator of pinned pages raises the latter
            return False
        buffer[:] = data
        return self.keep(digest, buffer)

    def drop(self, digest: str) -> None:
        """Forget a file."""
        with self._lock:
            if (gone := self._kept.pop(digest, None)) is not None:
                self._nbytes -= gone.nbytes

    def stats(self) -> TierStats:
        """Counts so far."""
        return replace(self._counts.stats, nbytes=self._nbytes, budget=self.budget)

    def _evict(self) -> int:
        """Under the lock: drop what was not used for longest; returns how many files."""
        count = 0
        while self._nbytes > self.budget:
            _, gone = self._kept.popitem(last=False)
            self._nbytes -= gone.nbytes
            count += 1
        return count
