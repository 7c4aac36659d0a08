"""The shared origin: a folder that all replicas read and write, of which the disk is a copy."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from taskvectors.errors import TierUnavailable, VectorNotFound
from taskvectors.store.breaker import Breaker
from taskvectors.store.counts import Counts
from taskvectors.store.origin_folder import open_folder
from taskvectors.store.settings import ORIGIN
from taskvectors.store.tier import Progress, StoredFile, TierStats

_FILE = re.compile(r"([0-9a-f]{64})\.safetensors")
_ROOT = "sha256"


class OriginTier:
    """Files at `<url>/sha256/ab/<digest>.safetensors`; see Durable.

    url: `file:///<folder>`, which must be there, or any fsspec URL, such as `s3://<bucket>/<prefix>`.
    Raises UnsupportedEngine for a URL that cannot be one, or whose driver is not installed.
    """

    name = ORIGIN

    def __init__(self, url: str) -> None:
        self._folder = open_folder(url)
        self._breaker = Breaker("the origin")
        self._counts = Counts()

    def size(self, digest: str) -> int | None:
        """Raises TierUnavailable."""
        try:
            with self._asking(digest):
                return self._folder.size(_name(digest))
        except VectorNotFound:
            return None

    def fill(self, digest: str, buffer: memoryview, progress: Progress) -> None:
        """In blocks; raises VectorNotFound for a file of another size, TierUnavailable."""
        started = time.monotonic()
        with self._asking(digest):
            count = self._folder.read(_name(digest), 0, buffer, progress)
        if count < buffer.nbytes:
            self._counts.add(corrupt=1, misses=1)
            raise VectorNotFound(
                f"sha256:{digest} is truncated in the origin: {count} of {buffer.nbytes} bytes"
            )
        self._counts.add(hits=1, read_bytes=count, seconds=time.monotonic() - started)

    def head(self, digest: str, nbytes: int) -> bytes | None:
        """A range read."""
        size = self.size(digest)
        if size is None:
            return None
        data = bytearray(min(nbytes, size))
        try:
            with self._asking(digest):
                count = self._folder.read(_name(digest), 0, memoryview(data), lambda _: None)
        except VectorNotFound:
            return None
        self._counts.add(read_bytes=count)
        return bytes(data[:count])

    def put(self, digest: str, data: memoryview) -> bool:
        """True: the file is there for good. Raises TierUnavailable when it cannot be written."""
        try:
            with self._asking(digest):
                self._folder.write(_name(digest), data)
                size = self._folder.size(_name(digest))
        except VectorNotFound as error:
            raise TierUnavailable(f"the origin is not there: {error.__cause__}") from error
        if size != data.nbytes:
            self.drop(digest)
            raise TierUnavailable(
                f"the origin kept {size} of the {data.nbytes} bytes of sha256:{digest}; try again"
            )
        self._counts.add(written_bytes=size)
        return True

    def drop(self, digest: str) -> None:
        """Raises TierUnavailable."""
        with self._asking(digest):
            self._folder.delete(_name(digest))

    def files(self) -> Iterator[StoredFile]:
        """Raises TierUnavailable."""
        with self._asking(_ROOT):
            found = list(self._folder.files(_ROOT))
        for name, size, modified in found:
            if match := _FILE.fullmatch(name):
                yield StoredFile(match[1], size, modified)

    def stats(self) -> TierStats:
        """An origin has no budget."""
        return replace(self._counts.stats, is_up=self._breaker.is_up)

    @contextmanager
    def _asking(self, digest: str) -> Iterator[None]:
        """FileNotFoundError becomes VectorNotFound; all else opens the breaker."""
        try:
            with self._breaker.calling():
                try:
                    yield
                except FileNotFoundError as error:
                    raise VectorNotFound(f"sha256:{digest} is not in the origin") from error
                except Exception as error:  # each driver raises its own
                    raise TierUnavailable(f"the origin fails: {error}") from error
        except TierUnavailable:
            self._counts.add(errors=1)
            raise


def _name(digest: str) -> str:
    return f"{_ROOT}/{digest[:2]}/{digest}.safetensors"
