"""The tier on the local disk: the directory store, and the composed loadouts beside it."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from taskvectors.container import open_regular
from taskvectors.errors import InvalidFile, StoreFull, TierUnavailable, VectorNotFound
from taskvectors.store.composed import ComposedStore
from taskvectors.store.counts import Counts
from taskvectors.store.directory import DirectoryStore
from taskvectors.store.room import needing_room
from taskvectors.store.settings import DISK
from taskvectors.store.tier import Progress, StoredFile, TierStats

log = logging.getLogger(__name__)

_CHUNK = 4 << 20


class DiskTier:
    """The files of a directory store. Composed loadouts are read here, and never put."""

    name = DISK

    def __init__(self, store: DirectoryStore) -> None:
        self._store = store
        self._composed = ComposedStore(store.root)
        self._counts = Counts()

    def path(self, digest: str) -> Path:
        """Where the file lies; raises VectorNotFound."""
        try:
            return self._store.path(digest)
        except VectorNotFound as missing:
            with contextlib.suppress(VectorNotFound):
                return self._composed.path(digest)
            raise missing

    def is_composed(self, digest: str) -> bool:
        """Whether the file is a composed loadout; others know nothing of it."""
        with contextlib.suppress(VectorNotFound):
            return self.path(digest).parent.name == "composed"
        return False

    def is_sound(self, digest: str) -> bool:
        """Read a file again; a damaged one goes to quarantine. Raises TierUnavailable."""
        with _refusals():
            if self.is_composed(digest):
                return self._composed.check(digest)
            return self._store.check(digest)

    def size(self, digest: str) -> int | None:
        """Bytes of the file; None when it is not here. Raises TierUnavailable."""
        try:
            with _refusals():
                return self.path(digest).stat().st_size
        except VectorNotFound:
            return None

    def fill(self, digest: str, buffer: memoryview, progress: Progress) -> None:
        """Read the file; raises VectorNotFound, also when it is shorter, TierUnavailable."""
        begin, at = time.perf_counter(), 0
        with _refusals(), open_regular(self.path(digest)) as file:
            while at < buffer.nbytes:
                count = os.readv(file.fileno(), [buffer[at : at + _CHUNK]])
                if not count:
                    raise VectorNotFound(f"sha256:{digest} ends after {at} bytes")
                at += count
                progress(at)
        self._counts.add(read_bytes=at, seconds=time.perf_counter() - begin)

    def head(self, digest: str, nbytes: int) -> bytes | None:
        """The first bytes of the file; None when it is not here. Raises TierUnavailable."""
        try:
            with _refusals(), open_regular(self.path(digest)) as file:
                return file.read(nbytes)
        except VectorNotFound:
            return None

    def put(self, digest: str, data: memoryview) -> bool:
        """Write the file durably; False when the disk is full. Raises TierUnavailable."""
        if self.size(digest) == data.nbytes:
            return True
        temporary = self._store.new_upload()
        try:
            with _refusals(), needing_room(f"sha256:{digest}"):
                temporary.write_bytes(data)
                self._store.place(temporary, digest)
        except StoreFull as error:
            log.warning("not kept on disk: %s", error)
            return False
        except VectorNotFound as error:
            raise TierUnavailable(
                f"the disk keeps other bytes than it is given: {error}"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        self._counts.add(written_bytes=data.nbytes)
        return True

    def drop(self, digest: str) -> None:
        """Delete the file from the store; composed loadouts stay. Raises TierUnavailable."""
        with _refusals():
            self._store.discard(digest)

    def files(self) -> Iterator[StoredFile]:
        """Everything in the store. Raises TierUnavailable."""
        with _refusals():
            yield from self._store.files()

    def stats(self) -> TierStats:
        """Counts so far; what the disk holds is not looked at."""
        return replace(self._counts.stats)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """What the system says, in a tier's words."""
    try:
        yield
    except FileNotFoundError as error:
        raise VectorNotFound("the file has gone meanwhile") from error
    except InvalidFile as error:
        raise VectorNotFound(str(error)) from error
    except OSError as error:
        raise TierUnavailable(f"the disk does not answer: {error.strerror}") from error
