"""Uploads that may be interrupted and taken up again, on disk: `<id>.json` and `<id>.upload`.

The bytes that are there are the offset, so that a gateway that is killed forgets nothing. An upload
is exclusive to whoever writes to it or publishes it, among threads and processes.
"""

import copy
import fcntl
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from outfitter.errors import TooManyUploads, UploadLocked, UploadMismatch, UploadNotFound
from taskvectors.durable import replacing
from taskvectors.store.room import needing_room

MAX_UNFINISHED = 64
MAX_TIMES_LIMIT = 4
"""All unfinished uploads together may become so many times as large as one."""
LIFETIME_S = 24 * 3600
"""An upload that nobody touches for so long is forgotten."""
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Upload:
    """An upload as it is now. length, offset: bytes. expires: Unix time. metadata: the client's."""

    id: str
    length: int
    offset: int
    metadata: str
    expires: float

    @property
    def is_whole(self) -> bool:
        """Whether every byte is here."""
        return self.offset == self.length


class Uploads:
    """The unfinished uploads in one folder. Every method may block on the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._owner: str | None = None
        self._folder.mkdir(parents=True, exist_ok=True)
        self._creating = threading.Lock()
        self._sweep()

    def of(self, owner: str) -> "Uploads":
        """The same, as one tenant has them: what is another's is not there, nor counted."""
        view = copy.copy(self)
        view._owner = owner
        return view

    def create(self, length: int, limit: int, metadata: str = "") -> Upload:
        """A new upload of `length` bytes; `limit`: of one. Raises TooManyUploads, StoreFull."""
        with self._creating:
            self._sweep()
            self._check_room(length, limit)
            id_ = secrets.token_hex(16)
            try:
                with needing_room("the upload"):
                    self.path(id_).touch(mode=0o600)
                    with replacing(self._record(id_)) as file:
                        said = {"length": length, "metadata": metadata, "owner": self._owner}
                        file.write(json.dumps(said).encode())
            except BaseException:
                self.path(id_).unlink(missing_ok=True)
                raise
        return self.find(id_)

    def find(self, id_: str) -> Upload:
        """How far an upload is; what it reports would survive a power cut. Raises UploadNotFound.

        May be called while another writes.
        """
        length, metadata = self._read(id_)
        try:
            with self.path(id_).open("rb") as file:
                status = os.fstat(file.fileno())
                os.fsync(file.fileno())
        except FileNotFoundError:
            raise _not_found(id_) from None
        expires = status.st_mtime + LIFETIME_S
        return Upload(id_, length, status.st_size, metadata, expires)

    def append(self, id_: str, offset: int) -> "Appending":
        """Go on at `offset`; close it afterwards.

        Raises UploadNotFound, UploadLocked, UploadMismatch for another offset.
        """
        self._read(id_)
        lock = self._lock(id_)
        try:
            upload = self.find(id_)
            if upload.offset != offset:
                raise UploadMismatch(f"the upload is at offset {upload.offset}, not {offset}")
        except BaseException:
            os.close(lock)
            raise
        return Appending(lock, upload)

    @contextmanager
    def whole(self, id_: str) -> Iterator[Path]:
        """The file of a whole upload; nobody may change it. Raises what `append` raises."""
        self._read(id_)
        lock = self._lock(id_)
        try:
            upload = self.find(id_)
            if not upload.is_whole:
                raise UploadMismatch(
                    f"the upload is not whole: it has {upload.offset} of {upload.length} bytes"
                )
            yield self.path(id_)
        finally:
            os.close(lock)

    def discard(self, id_: str) -> None:
        """Forget an upload, its bytes included."""
        self._record(id_).unlink(missing_ok=True)
        self.path(id_).unlink(missing_ok=True)

    def terminate(self, id_: str) -> None:
        """`discard` for a client. Raises UploadNotFound, UploadLocked."""
        self._read(id_)
        lock = self._lock(id_)
        try:
            self.discard(id_)
        finally:
            os.close(lock)

    def path(self, id_: str) -> Path:
        """Where the bytes are. Raises UploadNotFound for what is no id."""
        return self._folder / f"{_checked(id_)}.upload"

    def _record(self, id_: str) -> Path:
        return self._folder / f"{_checked(id_)}.json"

    def _read(self, id_: str) -> tuple[int, str]:
        """Its length and metadata. Raises UploadNotFound, also for another's."""
        try:
            fields = json.loads(self._record(id_).read_text("utf-8"))
            if self._owner not in (None, fields.get("owner")):
                raise _not_found(id_)
            return int(fields["length"]), str(fields["metadata"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            raise _not_found(id_) from None

    def _lock(self, id_: str) -> int:
        """A descriptor for appending that holds the lock until it is closed."""
        path, flags = self.path(id_), os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            try:
                descriptor = os.open(path, os.O_WRONLY | flags)
            except PermissionError:  # whole, and read-only: it is a file of the store already
                descriptor = os.open(path, os.O_RDONLY | flags)
        except FileNotFoundError:
            raise _not_found(id_) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise UploadLocked("another request is busy with this upload; try again") from None
        return descriptor

    def _check_room(self, length: int, limit: int) -> None:
        lengths = []
        for record in self._folder.glob("*.json"):
            with suppress(UploadNotFound):
                lengths.append(self._read(record.stem)[0])
        if len(lengths) >= MAX_UNFINISHED:
            raise TooManyUploads(
                f"{len(lengths)} uploads are unfinished; publish or delete one, or come back later"
            )
        if sum(lengths) + length > MAX_TIMES_LIMIT * limit:
            raise TooManyUploads(
                f"the unfinished uploads would have {sum(lengths) + length} bytes together; at most"
                f" {MAX_TIMES_LIMIT * limit} are allowed: publish or delete one, or come back later"
            )

    def _sweep(self) -> None:
        """Forget what nobody has touched for long, and what a kill left half made."""
        for path in self._folder.iterdir():
            parts = [path, path.with_suffix(".json"), path.with_suffix(".upload")]
            if max(map(_modified, parts)) < time.time() - LIFETIME_S:
                for part in parts:
                    part.unlink(missing_ok=True)


class Appending:
    """Writes to one upload. `write` and `close` may be called from any thread."""

    def __init__(self, descriptor: int, upload: Upload) -> None:
        self._descriptor = descriptor
        self._guard = threading.Lock()
        self.upload = upload

    def write(self, data: bytes | bytearray) -> None:
        """Append; raises StoreFull, with what fitted kept."""
        with self._guard:
            write_all(self._descriptor, data)

    def take_back(self) -> None:
        """Forget what was written since it was opened."""
        with self._guard:
            if not self.upload.is_whole:  # else nothing was
                os.ftruncate(self._descriptor, self.upload.offset)

    def close(self) -> None:
        """Make what arrived durable and let others have the upload."""
        with self._guard:
            try:
                with needing_room("the upload"):
                    os.fsync(self._descriptor)
            finally:
                os.close(self._descriptor)
                self._descriptor = -1  # a write that comes late must not meet another file


def write_all(descriptor: int, data: bytes | bytearray) -> None:
    """Write every byte; raises StoreFull when only some of them fit."""
    left = memoryview(data)
    with needing_room("the upload"):
        while left:
            left = left[os.write(descriptor, left) :]


def _checked(id_: str) -> str:
    if not _ID.fullmatch(id_):
        raise _not_found(id_)
    return id_


def _not_found(id_: str) -> UploadNotFound:
    return UploadNotFound(
        f"no unfinished upload {id_!r}: it was published, deleted, or forgotten after a day"
    )


def _modified(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0
