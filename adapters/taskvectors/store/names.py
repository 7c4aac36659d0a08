"""Names and their versions: one small JSON file per name, replaced whole.

`names/<namespace or _>/<name>.json` holds `{"next": 4, "versions": [{version, digest, created,
size}, …]}`. Version numbers are never given twice: a removed name keeps its `next`.
"""

import difflib
import itertools
import json
import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from taskvectors.durable import replacing
from taskvectors.errors import InvalidReference, UnreadableName, VectorNotFound
from taskvectors.spec import Reference
from taskvectors.store.base import Entry

log = logging.getLogger(__name__)

MAX_LOOKED_AT = 1000
"""A suggestion is looked for among so many names at most."""
_NO_NAMESPACE = "_"  # no namespace can be called so
_SUFFIX = ".json"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_REMEMBERED = 4096


@dataclass(frozen=True)
class Record:
    """The versions of one name, oldest first."""

    name: str
    versions: tuple[Entry, ...] = ()
    next_version: int = 1

    def find(self, reference: Reference) -> Entry | None:
        """The version that the reference pins, else the latest."""
        for entry in reversed(self.versions):
            if reference.version in (None, entry.version) and reference.digest in (
                None,
                entry.digest,
            ):
                return entry
        return None

    def with_digest(self, digest: str, size: int) -> "Record":
        """This record with `digest` as its latest version."""
        if self.versions and self.versions[-1].digest == digest:
            return self
        entry = Entry(self.name, self.next_version, digest, int(time.time()), size)
        return replace(self, versions=(*self.versions, entry), next_version=self.next_version + 1)

    def without(self, gone: Entry) -> "Record":
        """This record without one version."""
        return replace(self, versions=tuple(entry for entry in self.versions if entry != gone))


class Names:
    """The records under one folder. Writers hold the store's lock; readers need none."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def load(self, reference: Reference) -> Record:
        """The record of a name, empty if there is none; raises InvalidReference, UnreadableName."""
        if reference.path is None:
            raise InvalidReference(f"{reference} is a digest, not a name")
        path = self._file(reference)
        try:
            status = path.stat()
            return _read(reference.path, path, (status.st_ino, status.st_mtime_ns))
        except FileNotFoundError:
            return Record(reference.path)

    def save(self, record: Record) -> None:
        """Replace the record."""
        path = self._file(Reference.parse(record.name))
        path.parent.mkdir(parents=True, exist_ok=True)
        versions = [
            {"version": e.version, "digest": e.digest, "created": e.created, "size": e.size}
            for e in record.versions
        ]
        fields = {"next": record.next_version, "versions": versions}
        with replacing(path) as file:
            file.write(json.dumps(fields, indent=1).encode())

    def records(self) -> Iterator[Record]:
        """Every record that can be read, in no useful order."""
        for path in self._root.glob(f"*/[!.]*{_SUFFIX}"):
            try:
                yield self._record(path)
            except FileNotFoundError:  # removed meanwhile
                continue
            except UnreadableName as error:
                log.warning("left out: %s", error)

    def check(self) -> None:
        """Raise UnreadableName if there is a record whose versions cannot be known."""
        for path in self._root.glob(f"*/[!.]*{_SUFFIX}"):
            with suppress(FileNotFoundError):
                self._record(path)

    def not_found(self, reference: Reference, record: Record) -> VectorNotFound:
        """The error for a reference that names nothing; it suggests only from its namespace."""
        if record.versions:
            known = ", ".join(f"@{entry.version}" for entry in record.versions[-5:])
            return VectorNotFound(f"no task vector {str(reference)!r}; {record.name!r} has {known}")
        close = [repr(name) for name in self._close_to(reference)]
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        return VectorNotFound(f"no task vector {str(reference)!r}{hint}")

    def _close_to(self, reference: Reference) -> list[str]:
        """Up to three names like this one that stand for something."""
        assert reference.name is not None
        files = self._file(reference).parent.glob(f"[!.]*{_SUFFIX}")
        names = [file.name.removesuffix(_SUFFIX) for file in itertools.islice(files, MAX_LOOKED_AT)]
        prefix = f"{reference.namespace}/" if reference.namespace else ""
        close = difflib.get_close_matches(reference.name, names, n=6)
        return [f"{prefix}{name}" for name in close if self._stands(f"{prefix}{name}")][:3]

    def _stands(self, name: str) -> bool:
        try:
            return bool(self.load(Reference.parse(name)).versions)
        except (InvalidReference, UnreadableName):
            return False

    def _record(self, path: Path) -> Record:
        name = path.name.removesuffix(_SUFFIX)
        folder = path.parent.name
        return _parse(name if folder == _NO_NAMESPACE else f"{folder}/{name}", path)

    def _file(self, reference: Reference) -> Path:
        assert reference.name is not None
        return self._root / (reference.namespace or _NO_NAMESPACE) / f"{reference.name}{_SUFFIX}"


@lru_cache(_REMEMBERED)
def _read(name: str, path: Path, _version: tuple[int, int]) -> Record:
    """A record is replaced by rename: another inode or time is another text."""
    return _parse(name, path)


def _parse(name: str, path: Path) -> Record:
    """Raises FileNotFoundError, UnreadableName."""
    try:
        fields = json.loads(path.read_text("utf-8"))
        versions = tuple(_entry(name, version) for version in fields["versions"])
        return Record(name, versions, int(fields["next"]))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnreadableName(
            f"the store cannot read names/{path.parent.name}/{path.name}, which keeps the versions"
            f" of {name!r}: {error!r}; restore or remove that file"
        ) from error


def _entry(name: str, fields: Mapping[str, Any]) -> Entry:
    if not _DIGEST.fullmatch(fields["digest"]):
        raise ValueError("a digest must have 64 hex digits")
    numbers = {key: int(fields[key]) for key in ("version", "created", "size")}
    return Entry(name, digest=fields["digest"], **numbers)
