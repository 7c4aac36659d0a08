"""Composed loadouts in a store: `composed/<digest>.safetensors` and `composed/<key>.json`.

A file lies under its own digest, so that the engine loads it like any vector; a record of one line
says which file a loadout was composed into. No reference names these files: `DirectoryStore` does
not look here. Everything here can be made again, so whatever is lost or damaged is.
"""

import hashlib
import json
import logging
import os
import re
import time
import uuid
from contextlib import suppress
from pathlib import Path

from taskvectors.durable import rename, replacing
from taskvectors.errors import InvalidFile, VectorNotFound
from taskvectors.format import FileHeader, file_digest, read_header
from taskvectors.spec import Loadout
from taskvectors.store.headers import HeaderCache

log = logging.getLogger(__name__)

COMPOSE_VERSION = 1
"""Raise it whenever the bytes of any method's result change: older files are not found then."""
GRACE_S = 60.0
"""A file used within this time is never evicted: the engine may be about to load it."""
MAX_FILES = 4096
_STALE_S = 3600.0
_DIGEST = re.compile(r"[0-9a-f]{64}")


def composed_key(loadout: Loadout, base_fingerprint: str | None) -> str:
    """What a composed loadout is remembered by: 64 hex digits.

    base_fingerprint: of the base that is served; some methods look at it, and not every vector
    says which it belongs to.
    """
    facts = [COMPOSE_VERSION, base_fingerprint, loadout.digest]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


class ComposedStore:
    """The composed loadouts of the store at `root`, least recently used out first.

    Every method may be called from many threads and processes at once.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._folder = Path(root).resolve() / "composed"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._headers = HeaderCache()

    def path(self, digest: str) -> Path:
        """Raises VectorNotFound."""
        path = self._file(digest)
        if path.is_symlink() or not path.is_file():
            raise VectorNotFound(f"no composed loadout sha256:{digest}")
        return path

    def header(self, digest: str) -> FileHeader:
        """Raises VectorNotFound, InvalidFile, OSError."""
        path = self.path(digest)
        return self._headers.get(digest, lambda: read_header(path))

    def find(self, key: str) -> str | None:
        """The digest of the file that was composed for `key`, now the most recently used."""
        try:
            digest = json.loads(self._record(key).read_text("utf-8"))["digest"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        known = isinstance(digest, str) and _DIGEST.fullmatch(digest) and self.touch(digest)
        return digest if known else None

    def touch(self, digest: str) -> bool:
        """Make a file the most recently used; False when it is not here."""
        try:
            os.utime(self._file(digest))
        except OSError:
            return False
        return True

    def new_file(self) -> Path:
        """A fresh path to write to, for `put`. What was left there for an hour is swept."""
        self._sweep()
        return self._folder / f".{uuid.uuid4().hex}.part"

    def put(self, written: Path, digest: str, key: str) -> None:
        """Take over a synced file from `new_file` that was composed for `key`."""
        written.chmod(0o444)
        rename(written, self._file(digest))
        with replacing(self._record(key)) as file:
            file.write(json.dumps({"digest": digest}).encode())

    def check(self, digest: str) -> bool:
        """Read a file again and drop it unless it has its digest; whether it is sound."""
        path = self._file(digest)
        inode = _inode(path)
        try:
            if file_digest(self.path(digest)) == digest:
                return True
            log.warning("the composed loadout sha256:%s is damaged and is dropped", digest)
        except (VectorNotFound, InvalidFile, OSError) as error:
            log.warning("the composed loadout sha256:%s cannot be read: %s", digest, error)
        # Not if it was composed again meanwhile.
        if inode is not None and inode == _inode(path):
            path.unlink(missing_ok=True)
        return False

    def evict(self, budget: int) -> list[str]:
        """Drop the least recently used files beyond `budget` bytes; returns their digests."""
        self._sweep()
        files = sorted((_stat(path) for path in self._folder.glob("*.safetensors")), reverse=True)
        total, gone = 0, []
        for position, (_, size, path) in enumerate(files):
            total += size
            over = total > budget or position >= MAX_FILES
            # Looked at again: another process may have used it since.
            if over and _stat(path)[0] < time.time() - GRACE_S:
                path.unlink(missing_ok=True)
                gone.append(path.stem)
                total -= size
        if gone:
            self._drop_records(set(gone))
        return gone

    def _drop_records(self, digests: set[str]) -> None:
        for path in self._folder.glob("*.json"):
            with suppress(OSError, ValueError, KeyError, TypeError):
                if json.loads(path.read_text("utf-8"))["digest"] in digests:
                    path.unlink()

    def _sweep(self) -> None:
        """What a process that was killed left behind."""
        for pattern in (".*.part", ".*.tmp"):
            for path in self._folder.glob(pattern):
                if _stat(path)[0] < time.time() - _STALE_S:
                    path.unlink(missing_ok=True)

    def _file(self, digest: str) -> Path:
        assert _DIGEST.fullmatch(digest), digest
        return self._folder / f"{digest}.safetensors"

    def _record(self, key: str) -> Path:
        return self._folder / f"{key}.json"


def _inode(path: Path) -> int | None:
    """Tells a file from its replacement; None when there is none."""
    try:
        return path.lstat().st_ino
    except OSError:
        return None


def _stat(path: Path) -> tuple[float, int, Path]:
    """(mtime, bytes, path); of a file that is gone, (now, 0, path)."""
    try:
        status = path.stat()
        return status.st_mtime, status.st_size, path
    except OSError:
        return time.time(), 0, path
