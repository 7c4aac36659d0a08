"""The folder behind an origin: on a file system that is mounted here, or at an fsspec URL.

Names are relative paths. Every method may be called from many threads; FileNotFoundError says that
a file is not there, any other error that the folder does not answer.
"""

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import fsspec

from taskvectors.durable import replacing, sync_directory
from taskvectors.errors import UnsupportedEngine

_BLOCK = 8 << 20
_AT_ONCE = 4
_STALE_S = 24 * 3600.0
_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")
"""What is written there appears when it is complete."""
_S3 = {
    "config_kwargs": {"connect_timeout": 5, "read_timeout": 20, "retries": {"max_attempts": 1}},
    "use_listings_cache": False,
    "skip_instance_cache": True,
}
_S3_TRIES = 2
"""s3fs tries again above botocore, five times by itself."""


class Folder(Protocol):
    """What an origin needs of a folder."""

    def size(self, name: str) -> int:
        """Bytes of a file."""
        ...

    def read(
        self, name: str, start: int, buffer: memoryview, progress: Callable[[int], None]
    ) -> int:
        """Fill `buffer` from byte `start`; how many bytes came before the file's end."""
        ...

    def write(self, name: str, data: memoryview) -> None:
        """Durably, and wholly or not at all."""
        ...

    def delete(self, name: str) -> None:
        """Not an error when it is not there."""
        ...

    def files(self, under: str) -> Iterator[tuple[str, int, float]]:
        """(file name without folders, bytes, Unix time of its last change)."""
        ...


def open_folder(url: str) -> Folder:
    """Touches nothing yet. Raises UnsupportedEngine for a URL that cannot be one."""
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme == "file":
        path = Path(urlsplit(url).path)
        if not path.is_absolute() or urlsplit(url).netloc:
            raise UnsupportedEngine("the origin must be file:///<absolute path> or s3://<bucket>/…")
        return LocalFolder(path)
    if not scheme:
        raise UnsupportedEngine(
            f"the origin {url[:200]!r} must be a URL: file:///<folder>, s3://<bucket>/<prefix>"
        )
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        hint = "pip install 'outfitter[s3]'" if scheme in ("s3", "s3a") else str(error)
        raise UnsupportedEngine(f"the driver of {scheme}:// is not installed: {hint}") from error
    except ValueError as error:
        raise UnsupportedEngine(
            f"unsupported scheme {scheme!r} of the origin; use file or s3"
        ) from error
    return RemoteFolder(url, scheme)


class LocalFolder:
    """A folder that must be there: a share that is not mounted is not filled by mistake."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return self._path(name).stat().st_size

    def read(
        self, name: str, start: int, buffer: memoryview, progress: Callable[[int], None]
    ) -> int:
        """In blocks, straight into the buffer."""
        at = 0
        with self._path(name).open("rb", buffering=0) as file:
            file.seek(start)
            while count := file.readinto(buffer[at : at + _BLOCK]):
                at += count
                progress(at)
        return at

    def write(self, name: str, data: memoryview) -> None:
        """By a temporary file, fsync and rename. What is there may be damaged: it is replaced."""
        path = self._path(name)
        self._make_folder(path.parent)
        with replacing(path) as file:
            file.write(data)

    def delete(self, name: str) -> None:
        """Not an error when it is not there."""
        self._path(name).unlink(missing_ok=True)

    def files(self, under: str) -> Iterator[tuple[str, int, float]]:
        """Sweeps what a killed writer left a day ago."""
        for path in self._path(under).glob("*/*"):
            with suppress(FileNotFoundError):
                status = path.stat()
                if path.suffix != ".tmp":
                    yield path.name, status.st_size, status.st_mtime
                elif status.st_mtime < time.time() - _STALE_S:
                    path.unlink()

    def _path(self, name: str) -> Path:
        if not self._root.is_dir():
            raise NotADirectoryError(f"{self._root} is no folder: make it, or mount the share")
        return self._root / name

    def _make_folder(self, folder: Path) -> None:
        if folder != self._root and not folder.is_dir():
            self._make_folder(folder.parent)
            folder.mkdir(exist_ok=True)
            sync_directory(folder.parent)


class RemoteFolder:
    """A folder at an fsspec URL. Connections belong to one process; a fork makes its own."""

    def __init__(self, url: str, scheme: str) -> None:
        self._url, self._scheme = url, scheme
        self._opened: tuple[int, Any, str] | None = None

    def size(self, name: str) -> int:
        """Bytes of a file."""
        fs, root = self._open()
        return int(fs.info(f"{root}/{name}")["size"])

    def read(
        self, name: str, start: int, buffer: memoryview, progress: Callable[[int], None]
    ) -> int:
        """By ranges, a few at a time."""
        fs, root = self._open()
        at = 0
        while at < buffer.nbytes:
            starts = list(range(at, buffer.nbytes, _BLOCK))[:_AT_ONCE]
            ends = [min(begin + _BLOCK, buffer.nbytes) for begin in starts]
            blocks = fs.cat_ranges(
                [f"{root}/{name}"] * len(starts),
                [start + begin for begin in starts],
                [start + end for end in ends],
                on_error="raise",
            )
            for begin, end, block in zip(starts, ends, blocks, strict=True):
                at = begin + min(len(block), end - begin)
                buffer[begin:at] = block[: end - begin]
                if at < end:
                    return at
            progress(at)
        return at

    def write(self, name: str, data: memoryview) -> None:
        """In one object that appears when it is complete, else by a rename."""
        fs, root = self._open()
        target = f"{root}/{name}"
        if self._scheme in _OBJECT_STORES:
            _write(fs, target, data)
            return
        fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        part = f"{target}.{uuid.uuid4().hex}.tmp"
        _write(fs, part, data)
        fs.mv(part, target)

    def delete(self, name: str) -> None:
        """Not an error when it is not there."""
        fs, root = self._open()
        with suppress(FileNotFoundError):
            fs.rm_file(f"{root}/{name}")

    def files(self, under: str) -> Iterator[tuple[str, int, float]]:
        """As the store lists them."""
        fs, root = self._open()
        for path, info in fs.find(f"{root}/{under}", detail=True).items():
            yield path.rpartition("/")[2], int(info["size"]), _modified(info)

    def _open(self) -> tuple[Any, str]:
        if self._opened is None or self._opened[0] != os.getpid():
            is_s3 = self._scheme in ("s3", "s3a")
            fs, root = fsspec.core.url_to_fs(self._url, **(_S3 if is_s3 else {}))
            if is_s3:
                fs.retries = _S3_TRIES
            self._opened = (os.getpid(), fs, str(root).rstrip("/"))
        return self._opened[1], self._opened[2]


def _write(fs: Any, path: str, data: memoryview) -> None:
    """A writer that is closed after an error would complete the upload: it is discarded."""
    file = fs.open(path, "wb")
    try:
        for start in range(0, data.nbytes, _BLOCK):
            file.write(bytes(data[start : start + _BLOCK]))
    except BaseException:
        file.discard()
        with suppress(AttributeError):
            file.closed = True  # else it tries once more when it is collected
        raise
    file.close()


def _modified(info: dict[str, Any]) -> float:
    """A file of unknown age is taken for a new one, so that no collector drops it."""
    for key in ("LastModified", "mtime", "last_modified", "updated", "created"):
        value = info.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, str):
            with suppress(ValueError):
                return datetime.fromisoformat(value).timestamp()
    return time.time()
