"""A store in a folder: `blobs/sha256/ab/<digest>.safetensors`, `incoming/`, `.lock`.

Blobs are read-only and appear by rename, so readers need no lock. Whoever places or drops blobs
holds the lock file. What failed a check is in `quarantine/`. Names are kept elsewhere.
"""

import errno
import fcntl
import hashlib
import os
import re
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from taskvectors.container import open_regular
from taskvectors.durable import rename, sync_directory
from taskvectors.errors import ChecksumMismatch, InvalidFile, VectorNotFound
from taskvectors.format import FileHeader, file_digest, read_header, validate_file
from taskvectors.store.headers import HeaderCache
from taskvectors.store.quarantine import BUDGET, Quarantine
from taskvectors.store.room import needing_room
from taskvectors.store.tier import StoredFile

_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_CHUNK = 1 << 20
_STALE_SECONDS = 24 * 3600


class DirectoryStore:
    """Task vector files by digest. Every method may be called by many threads and processes."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Open or create the store at `root`."""
        self.root = Path(root).resolve()
        self._blobs = self.root / "blobs" / "sha256"
        self._incoming = self.root / "incoming"
        for folder in (self._blobs, self._incoming):
            folder.mkdir(parents=True, exist_ok=True)
        self._headers = HeaderCache()
        self._quarantine = Quarantine(self.root / "quarantine")
        self._sweep_incoming()

    def add(self, path: str | os.PathLike[str]) -> str:
        """Copy, then validate the copy; raises InvalidFile, StoreFull, OSError."""
        temporary = self.new_upload()
        try:
            with needing_room("the file"):
                digest = _copy(path, temporary)
                validate_file(temporary)
                with self._locked():
                    self._place(temporary, digest)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
        return digest

    def new_upload(self) -> Path:
        """A fresh path in `incoming/`; what is left there for a day is swept."""
        return self._incoming / f"{uuid.uuid4().hex}.part"

    def place(self, temp_path: Path, digest: str) -> Path:
        """Take over a file from `new_upload`; return its place. It replaces one that is there.

        Raises InvalidFile for a path not in `incoming/`, ChecksumMismatch for another digest,
        StoreFull, OSError.
        """
        with needing_room(f"sha256:{_key(digest)}"):
            self._check_upload(temp_path, _key(digest))
            with self._locked():
                return self._place(temp_path, _key(digest))

    def discard(self, digest: str) -> None:
        """Delete a file, whoever wants it; no file is as well. Raises OSError."""
        with self._locked():
            self._blob(_key(digest)).unlink(missing_ok=True)
        self._headers.forget(_key(digest))

    def files(self) -> Iterator[StoredFile]:
        """Everything that is kept, in no useful order."""
        for path in self._blobs.glob("*/*.safetensors"):
            with suppress(FileNotFoundError):
                status = path.lstat()
                if _DIGEST.fullmatch(path.stem) and stat.S_ISREG(status.st_mode):
                    yield StoredFile(path.stem, status.st_size, status.st_mtime)

    def check(self, digest: str) -> bool:
        """Whether the file still has its digest; a damaged one goes into quarantine.

        Reads it whole. Raises OSError where it cannot be read and may be sound for all that.
        """
        blob = self._blob(_key(digest))
        try:
            inode = blob.lstat().st_ino
            if (actual := _digest_on_disk(blob)) == _key(digest):
                return True
        except FileNotFoundError:
            return False
        with self._locked(), suppress(FileNotFoundError):
            if blob.lstat().st_ino == inode:  # else it was healed meanwhile
                self.quarantine(blob, f"it is damaged: {actual}")
        return False

    def quarantine(self, path: Path, reason: str, budget: int = BUDGET) -> None:
        """Keep a file of this store that failed a check for a look, within `budget` bytes."""
        self._quarantine.take(path, reason, budget)

    def path(self, digest: str) -> Path:
        """Raises VectorNotFound."""
        path = self._blob(_key(digest))
        if path.is_symlink() or not path.is_file():
            raise VectorNotFound(f"no task vector sha256:{_key(digest)}")
        return path

    def header(self, digest: str) -> FileHeader:
        """Remembers the headers that were asked for last, within a budget."""
        path = self.path(digest)
        return self._headers.get(_key(digest), lambda: read_header(path))

    def _check_upload(self, temp_path: Path, digest: str) -> None:
        if temp_path.parent.resolve() != self._incoming or temp_path.is_symlink():
            raise InvalidFile(f"{temp_path.name} is not in the store's incoming folder")
        actual = file_digest(temp_path)
        if actual != digest:
            raise ChecksumMismatch(f"the upload has digest {actual}, not {digest}")
        with temp_path.open("rb") as file:
            os.fsync(file.fileno())

    def _place(self, temporary: Path, digest: str) -> Path:
        """Under the lock: move a synced file to its blob. One that is there may be damaged."""
        blob = self._blob(digest)
        if not blob.parent.exists():
            blob.parent.mkdir()
            sync_directory(self._blobs)
        temporary.chmod(0o444)
        rename(temporary, blob)
        return blob

    def _blob(self, digest: str) -> Path:
        return self._blobs / digest[:2] / f"{digest}.safetensors"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Exclusive among threads and processes: each call opens the lock file anew."""
        with (self.root / ".lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _sweep_incoming(self) -> None:
        for path in self._incoming.glob("*.part"):
            with suppress(FileNotFoundError):
                if path.lstat().st_mtime < time.time() - _STALE_SECONDS:
                    path.unlink()


def _key(digest: str) -> str:
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise VectorNotFound(f"{digest[:80]!r} is no digest; use 64 hex digits")
    return match[1]


def _digest_on_disk(path: Path) -> str:
    """The digest of a file, or why it has none. Raises OSError, but not for a bad sector."""
    try:
        return file_digest(path)
    except InvalidFile as error:
        return str(error)
    except OSError as error:
        if error.errno not in (errno.EIO, errno.ELOOP):
            raise
        return str(error.strerror)


def _copy(source: str | os.PathLike[str], target: Path) -> str:
    """Copy with fsync; return the digest of what was written."""
    digest = hashlib.sha256()
    with open_regular(source) as reader, target.open("xb") as writer:
        while chunk := reader.read(_CHUNK):
            digest.update(chunk)
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest()
