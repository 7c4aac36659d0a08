"""Names and their versions: one small JSON file per name, replaced whole.

`names/<namespace or _>/<name>.json` holds `{"next": 4, "versions": [{version, digest, created,
size}, …]}`. Version numbers are never given twice: a removed name keeps its `next`.
"""

import difflib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from taskvectors.durable import replacing
from taskvectors.errors import InvalidReference, VectorNotFound
from taskvectors.spec import Reference
from taskvectors.store.base import Entry

_NO_NAMESPACE = "_"  # no namespace can be called so
_SUFFIX = ".json"
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
        """The record of a name, empty if there is none; raises InvalidReference."""
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
        """Every record, in no useful order."""
        for path in self._root.glob(f"*/[!.]*{_SUFFIX}"):
            name = path.name.removesuffix(_SUFFIX)
            folder = path.parent.name
            full = name if folder == _NO_NAMESPACE else f"{folder}/{name}"
            try:
                yield _parse(full, path.read_text("utf-8"))
            except FileNotFoundError:  # removed meanwhile
                continue

    def not_found(self, reference: Reference, record: Record) -> VectorNotFound:
        """The error for a reference that names nothing; it suggests only from its namespace."""
        if record.versions:
            known = ", ".join(f"@{entry.version}" for entry in record.versions[-5:])
            return VectorNotFound(f"no task vector {str(reference)!r}; {record.name!r} has {known}")
        names = [
            known.name
            for known in self.records()
            if known.versions and Reference.parse(known.name).namespace == reference.namespace
        ]
        close = difflib.get_close_matches(record.name, names, n=3)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        return VectorNotFound(f"no task vector {str(reference)!r}{hint}")

    def _file(self, reference: Reference) -> Path:
        assert reference.name is not None
        return self._root / (reference.namespace or _NO_NAMESPACE) / f"{reference.name}{_SUFFIX}"


@lru_cache(_REMEMBERED)
def _read(name: str, path: Path, _version: tuple[int, int]) -> Record:
    """A record is replaced by rename: another inode or time is another text."""
    return _parse(name, path.read_text("utf-8"))


def _parse(name: str, text: str) -> Record:
    fields = json.loads(text)
    versions = tuple(Entry(name, **version) for version in fields["versions"])
    return Record(name, versions, fields["next"])
