"""An OCI image layout: a folder with artefacts, each under a tag."""

import contextlib
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

from outfitter.config import InvalidConfig
from outfitter.errors import SourceFailed
from outfitter.state.records import Version
from outfitter.transfer.descriptors import Descriptor, copy_checked, parse_json
from outfitter.transfer.fetched import Fetched, Progress, no_progress
from outfitter.transfer.modelpack import (
    ARTIFACT,
    MANIFEST,
    MAX_MANIFEST,
    TAG,
    check_tag,
    default_tag,
    pack,
    unpack,
)
from taskvectors.durable import replacing
from taskvectors.errors import ChecksumMismatch

SCHEME = "oci:"
LAYOUT_FILE = "oci-layout"
INDEX_FILE = "index.json"
LAYOUT_VERSION = "1.0.0"
REF_NAME = "org.opencontainers.image.ref.name"
INDEX = "application/vnd.oci.image.index.v1+json"

MAX_LAYOUT_FILE = 4 << 10
MAX_INDEX = 4 << 20


def export_layout(
    version: Version,
    file: Path,
    folder: Path,
    tag: str | None = None,
    progress: Progress = no_progress,
) -> str:
    """Add a version to the layout in `folder`, made if need be; return its manifest's digest.

    tag: `<last part of the name>-<version>` when None; it moves if it is there. The index is
    written last: until then nothing is seen. Raises InvalidConfig, ChecksumMismatch, OSError.
    """
    tag = check_tag(default_tag(version) if tag is None else tag)
    package = pack(version)
    _prepare(folder)
    blobs = folder / "blobs" / "sha256"
    _copy_in(file, blobs / version.digest, version.digest, progress)
    for digest, data in (*package.blobs.items(), (package.descriptor.digest, package.manifest)):
        _write(blobs / digest, data)
    entry = package.descriptor.to_json() | {
        "artifactType": ARTIFACT,
        "annotations": {REF_NAME: tag},
    }
    with _locked(folder):
        _write(folder / INDEX_FILE, _with_entry(_index(folder), entry, tag))
    return package.descriptor.digest


def fetch(url: str, target: Path, *, limit: int, progress: Progress) -> Fetched:
    """Fetch from `oci:<folder>[:<tag>]`, or from a registry: `oci://<host>/<repository>:<tag>`.

    Raises SourceFailed.
    """
    if url.startswith(f"{SCHEME}//"):
        from outfitter.transfer import registry  # its libraries are an extra

        return registry.fetch(url, target, limit=limit, progress=progress)
    folder, tag = _parse(url)
    parse_json(_read_file(folder / LAYOUT_FILE, MAX_LAYOUT_FILE), LAYOUT_FILE)
    descriptor = _find(folder, tag)
    contents = unpack(_read_blob(folder, descriptor, MAX_MANIFEST), lambda d: _read_blob(folder, d))
    _copy_out(folder, contents.weight, target, limit, progress)
    return Fetched(
        f"{SCHEME}{folder}:{tag}" if tag else f"{SCHEME}{folder}",
        f"sha256:{descriptor.digest}",
        contents.name,
        contents.details,
        contents.signature,
    )


def _parse(url: str) -> tuple[Path, str | None]:
    text = unquote(url.removeprefix(SCHEME))
    path, colon, tag = text.rpartition(":")
    if not colon or Path(text).is_dir():
        return Path(text), None
    if not TAG.fullmatch(tag):
        raise SourceFailed(f"invalid OCI source {url[:200]!r}: use oci:<folder>:<tag>")
    return Path(path), tag


def _find(folder: Path, tag: str | None) -> Descriptor:
    """The manifest under a tag; the only one when no tag is given."""
    fields = parse_json(_read_file(folder / INDEX_FILE, MAX_INDEX), INDEX_FILE)
    entries = fields.get("manifests")
    found = [
        Descriptor.parse(entry, f"an entry of {INDEX_FILE}")
        for entry in (entries if isinstance(entries, list) else ())
    ]
    tags = sorted({d.annotations[REF_NAME] for d in found if REF_NAME in d.annotations})
    known = f"it has {', '.join(tags[:20])}"[:400] if tags else "it has none"
    wanted = [d for d in found if tag is None or d.annotations.get(REF_NAME) == tag]
    if not wanted:
        what = "no artefact" if tag is None else f"no tag {tag!r}; {known}"
        raise SourceFailed(f"the layout {folder} has {what}")
    if len({d.digest for d in wanted}) > 1:
        raise SourceFailed(f"the layout {folder} has several artefacts; name a tag: {known}")
    if wanted[0].media_type != MANIFEST:
        raise SourceFailed(f"{wanted[0].media_type[:100]!r} in {INDEX_FILE} is no {MANIFEST}")
    return wanted[0]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A plain file, and never what a link or a pipe leads to; raises SourceFailed."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SourceFailed(f"cannot read {path}: {error.strerror}") from error
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise SourceFailed(f"{path} is no plain file")
        yield file


def _read_file(path: Path, most: int) -> bytes:
    with _opened(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise SourceFailed(f"{path} has more than {most} bytes")
    return data


def _read_blob(folder: Path, descriptor: Descriptor, most: int | None = None) -> bytes:
    if descriptor.size > (descriptor.size if most is None else most):
        raise SourceFailed(f"a manifest has {descriptor.size} bytes; at most {most} are read")
    data = _read_file(_blob(folder, descriptor), descriptor.size)
    if len(data) != descriptor.size or hashlib.sha256(data).hexdigest() != descriptor.digest:
        raise SourceFailed(f"the blob sha256:{descriptor.digest} has other bytes than it should")
    return data


def _copy_out(
    folder: Path, descriptor: Descriptor, target: Path, limit: int, progress: Progress
) -> None:
    if descriptor.size > limit:
        raise SourceFailed(f"the file has {descriptor.size} bytes; at most {limit} are taken")
    with _opened(_blob(folder, descriptor)) as source, target.open("xb") as to:
        copy_checked(source, to, descriptor, progress)


def _blob(folder: Path, descriptor: Descriptor) -> Path:
    return folder / "blobs" / "sha256" / descriptor.digest


def _prepare(folder: Path) -> None:
    """Make an empty layout, unless there is one; raises InvalidConfig for another folder."""
    marker = folder / LAYOUT_FILE
    if folder.exists() and not folder.is_dir():
        raise InvalidConfig(f"{folder} is there, and no OCI layout; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        if not marker.is_file() and any(folder.iterdir()):
            raise InvalidConfig(f"{folder} is there, and no OCI layout; name a new folder")
        if not marker.is_file():
            _write(marker, _dumps({"imageLayoutVersion": LAYOUT_VERSION}))
        (folder / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
    found = parse_json(_read_file(marker, MAX_LAYOUT_FILE), str(marker))
    if found.get("imageLayoutVersion") != LAYOUT_VERSION:
        raise InvalidConfig(f"{marker} is of another version than {LAYOUT_VERSION}")


def _index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX_FILE
    if not path.exists():
        return {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
    fields = dict(parse_json(_read_file(path, MAX_INDEX), str(path)))
    if not isinstance(fields.get("manifests"), list):
        raise InvalidConfig(f"{path} has no list of manifests; it is no OCI layout")
    return fields


def _with_entry(index: dict[str, Any], entry: dict[str, object], tag: str) -> bytes:
    others = [old for old in index["manifests"] if _tag_of(old) != tag]
    return _dumps(index | {"manifests": [*others, entry]})


def _tag_of(entry: Any) -> object:
    annotations = entry.get("annotations") if isinstance(entry, dict) else None
    return annotations.get(REF_NAME) if isinstance(annotations, dict) else None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time change what is in the folder."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _copy_in(file: Path, to: Path, digest: str, progress: Progress) -> None:
    size = file.stat().st_size
    with replacing(to) as part:
        try:
            with file.open("rb") as source:
                copy_checked(source, part, Descriptor("", digest, size), progress)
        except SourceFailed as error:
            raise ChecksumMismatch(f"{file} has other bytes than sha256:{digest}") from error


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as file:
        file.write(data)


def _dumps(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
