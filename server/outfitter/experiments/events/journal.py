"""Events of this process in files, until they are in the database; those of the dead are adopted.

A file is locked for as long as its process lives. What a killed process wrote is in the system's
hands already: whoever lives and sees the folder finds it unlocked, and takes it over. (A machine
that loses its power may lose the last seconds.)
"""

import fcntl
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

MAX_BYTES = 256 * 2**20
"""Of the files of a process; what comes beyond is lost, and counted."""
SEGMENT_BYTES = 8 * 2**20
_SUFFIX, _NEW = ".journal", ".new"
_STALE_S = 3600.0


@dataclass
class Segment:
    """A file of whole lines, locked by us. size: bytes."""

    path: Path
    fd: int
    size: int = 0

    def lines(self) -> list[bytes]:
        """All whole ones; a last one without an end was never finished."""
        raw = self.path.read_bytes()
        return raw.split(b"\n")[:-1]

    def drop(self) -> None:
        """Delete it; its events are in the database."""
        self.path.unlink(missing_ok=True)
        os.close(self.fd)

    def leave(self) -> None:
        """Unlock it, for whoever comes next."""
        os.close(self.fd)


class Journal:
    """Thread-safe; `append` waits for nothing but the system's own memory."""

    def __init__(
        self, folder: Path, max_bytes: int = MAX_BYTES, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._folder = folder
        self._max_bytes, self._segment_bytes = max_bytes, segment_bytes
        self._lock = threading.Lock()
        self._current: Segment | None = None
        self._full: list[Segment] = []
        self.num_lost = 0
        """Events for which there was no room."""

    def append(self, line: bytes) -> bool:
        """Write down a line, which has no end yet; False where that cannot be done."""
        with self._lock:
            try:
                self._write(line + b"\n")
            except OSError as error:
                self._lose(str(error))
                return False
            return True

    @property
    def nbytes(self) -> int:
        """Of what is not taken yet."""
        with self._lock:
            return self._nbytes()

    def take(self) -> list[Segment]:
        """What this process wrote, oldest first; each is to be dropped or given `back`."""
        with self._lock:
            if self._current is not None and not self._full:
                self._full.append(self._current)
                self._current = None
            return list(self._full)

    def drop(self, segment: Segment) -> None:
        """Delete one that was taken."""
        with self._lock:
            self._full.remove(segment)
        segment.drop()

    def orphans(self) -> Iterator[Segment]:
        """Files of processes that are gone; each is to be dropped, or left."""
        with self._lock:
            own = {segment.path for segment in (*self._full, self._current) if segment is not None}
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            if path not in own and (segment := _adopted(path)) is not None:
                yield segment
        for path in self._folder.glob(f"*{_NEW}"):  # made by whoever was killed while making it
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_S:
                    path.unlink()

    def close(self) -> None:
        """Leave what was not taken to whoever comes next."""
        with self._lock:
            for segment in (*self._full, self._current):
                if segment is not None:
                    segment.leave()
            self._full, self._current = [], None

    def _write(self, line: bytes) -> None:
        if self._nbytes() + len(line) > self._max_bytes:
            raise OSError(f"it holds {self._max_bytes} bytes already")
        current = self._current
        if current is not None and current.size + len(line) > self._segment_bytes:
            self._full.append(current)
            current = None
        if current is None:
            current = self._current = _made(self._folder)
        try:
            written = os.write(current.fd, line)
            if written < len(line):
                raise OSError("the disk is full")
        except OSError:
            with suppress(OSError):  # else a half line: it is no event, and is skipped
                os.ftruncate(current.fd, current.size)
            raise
        current.size += len(line)

    def _nbytes(self) -> int:
        current = 0 if self._current is None else self._current.size
        return current + sum(segment.size for segment in self._full)

    def _lose(self, reason: str) -> None:
        if self.num_lost == 0:
            log.error("events of experiments are lost: the journal cannot be written: %s", reason)
        self.num_lost += 1


def _made(folder: Path) -> Segment:
    """A new file, which nobody sees before it is locked."""
    folder.mkdir(parents=True, exist_ok=True)
    name = uuid.uuid4().hex
    new = folder / f"{name}{_NEW}"
    fd = os.open(new, os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    path = folder / f"{name}{_SUFFIX}"
    new.rename(path)
    return Segment(path, fd)


def _adopted(path: Path) -> Segment | None:
    """A file whose process is gone, now locked by us; None where it lives, or we came too late."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink:
            return Segment(path, fd, os.fstat(fd).st_size)
    except OSError:
        pass
    os.close(fd)
    return None
