"""Plain files and PEFT folders: on this machine, on the web, and in buckets, by fsspec."""

import hashlib
import os
import stat
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import fsspec

from outfitter.errors import SourceFailed, SourceNotAllowed
from outfitter.transfer.adapters import fetch_adapter
from outfitter.transfer.allowed import Allowed, local_paths
from outfitter.transfer.download import download
from outfitter.transfer.fetched import Fetched, Progress
from outfitter.transfer.locations import WEB, Location
from outfitter.transfer.web import Web

DRIVERS: Mapping[str, str] = {
    "s3": "outfitter[s3]",
    "gs": "gcsfs",
    "abfs": "adlfs",
    "az": "adlfs",
}
"""Buckets, and what to install for them."""

_BLOCK = 1 << 20
_BENEATH = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Copy(Protocol):
    def __call__(self, location: Location, to: Path, limit: int) -> str:
        """Copy a file, and return its sha256 in hex."""
        ...


def fetch(
    location: Location,
    target: Path,
    *,
    limit: int,
    progress: Progress,
    allowed: Allowed | None = None,
) -> Fetched:
    """Copy a `.safetensors` file, or import the PEFT folder that the URL names.

    Raises SourceFailed, SourceNotAllowed, UnsupportedAdapter, InvalidCheckpoint, OSError.
    """
    revision = None
    with _opened(location, progress, allowed) as copy:
        if location.is_file:
            revision = f"sha256:{copy(location, target, limit)}"
        else:
            fetch_adapter(
                lambda name, to, most: copy(location.child(name), to, most), target, limit=limit
            )
    return Fetched(str(location), revision, location.name)


@contextmanager
def _opened(location: Location, progress: Progress, allowed: Allowed | None) -> Iterator[_Copy]:
    if location.scheme in WEB:
        with Web(allowed=allowed) as web:
            yield lambda found, to, limit: download(
                web, found.url, to, limit=limit, progress=progress
            )
    elif location.scheme == "file":
        yield lambda found, to, limit: _copy_local(found, to, limit, progress, allowed)
    else:
        driver = _driver(location.scheme)
        yield lambda found, to, limit: _copy_object(driver, found, to, limit, progress)


def _copy_local(
    location: Location, to: Path, limit: int, progress: Progress, allowed: Allowed | None
) -> str:
    with _open_local(location, allowed) as file:
        total = os.fstat(file.fileno()).st_size
        blocks = iter(lambda: file.read(_BLOCK), b"")
        return _write(location, blocks, total, to, limit, progress)


def _open_local(location: Location, allowed: Allowed | None) -> BinaryIO:
    """Links are followed once, and what they led to is then opened without following any.

    Raises SourceFailed, SourceNotAllowed.
    """
    try:
        real = local_paths(location)[0].resolve(strict=True)
        root = real.parent if allowed is None else allowed.root_of(real)
        if root is None:
            raise SourceNotAllowed(
                f"the source {str(location)[:200]!r} leads to a folder that is not allowed here"
            )
        file = os.fdopen(_open_beneath(real.parent if root == real else root, real), "rb")
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SourceFailed(f"cannot read {location}: {reason}") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise SourceFailed(f"{location} is no regular file")
    return file


def _open_beneath(root: Path, real: Path) -> int:
    """Open `real`, which has no links, step by step: one that is put there meanwhile is refused."""
    *folders, name = real.relative_to(root).parts
    descriptor = os.open(root, _BENEATH | os.O_DIRECTORY)
    for folder in folders:
        parent = descriptor
        try:
            descriptor = os.open(folder, _BENEATH | os.O_DIRECTORY, dir_fd=parent)
        finally:
            os.close(parent)
    try:
        return os.open(name, _BENEATH | os.O_NONBLOCK, dir_fd=descriptor)
    finally:
        os.close(descriptor)


def _driver(scheme: str) -> Any:
    """The file system of a bucket; raises SourceFailed."""
    try:
        return fsspec.filesystem(scheme)
    except ImportError as error:
        package = DRIVERS[scheme]
        raise SourceFailed(f"{scheme}:// needs a driver: pip install {package!r}") from error
    except Exception as error:  # drivers raise what they like
        raise SourceFailed(f"cannot open {scheme}://: {error}") from error


def _copy_object(driver: Any, location: Location, to: Path, limit: int, progress: Progress) -> str:
    path = location.authority + location.path
    try:
        total = driver.info(path).get("size")
    except Exception as error:
        raise _unreadable(location, error) from error
    with closing(_blocks(driver, location, path)) as blocks:
        return _write(location, blocks, total, to, limit, progress)


def _blocks(driver: Any, location: Location, path: str) -> Generator[bytes, None, None]:
    try:
        with driver.open(path, "rb", block_size=4 * _BLOCK) as file:
            while block := file.read(_BLOCK):
                yield block
    except Exception as error:
        raise _unreadable(location, error) from error


def _unreadable(location: Location, error: Exception) -> SourceFailed:
    reason = "there is no such file" if isinstance(error, FileNotFoundError) else error
    return SourceFailed(f"cannot read {location}: {reason}")


def _write(
    location: Location,
    blocks: Iterable[bytes],
    total: int | None,
    to: Path,
    limit: int,
    progress: Progress,
) -> str:
    """At most `limit` bytes, whatever `total` says; returns the sha256 in hex."""
    digest, done = hashlib.sha256(), 0
    if (total or 0) > limit:
        raise SourceFailed(f"{location} has {total} bytes; at most {limit} are taken")
    with to.open("xb") as file:
        for block in blocks:
            done += len(block)
            if done > limit:
                raise SourceFailed(f"{location} has more than {limit} bytes, which are the most")
            file.write(block)
            digest.update(block)
            progress(len(block), total)
    return digest.hexdigest()
