"""The task vectors that this server has: the store, seen through the base that is served."""

import functools
import logging
import math
from dataclasses import dataclass
from pathlib import Path

from outfitter.control.resolve import ResolvedVector
from outfitter.control.selection import Modules
from taskvectors.errors import InvalidFile, VectorNotFound
from taskvectors.format import FileHeader, validate_file
from taskvectors.spec import Reference
from taskvectors.store import DirectoryStore, Entry

log = logging.getLogger(__name__)

MAX_SUMMARIES = 4096


@dataclass(frozen=True)
class Base:
    """The resident base: what task vectors must fit."""

    fingerprint: str
    shapes: dict[str, tuple[int, ...]]

    @functools.cached_property
    def modules(self) -> Modules:
        """What the layers and modules of a request can name."""
        return Modules(self.shapes)


@dataclass(frozen=True)
class Summary:
    """What a file's header says, in numbers."""

    base_name: str | None
    base_fingerprint: str | None
    parameters: int
    nnz: int
    numel: int
    nbytes: int

    @classmethod
    def of(cls, header: FileHeader) -> "Summary":
        """Count the stored values of every parameter."""
        return cls(
            header.base.name,
            header.base.fingerprint,
            len(header.parameters),
            sum(spec.nnz or 0 for spec in header.parameters.values()),
            sum(math.prod(spec.shape) for spec in header.parameters.values()),
            header.nbytes,
        )

    @property
    def density(self) -> float:
        """Stored values as a share of the elements of the parameters it changes."""
        return self.nnz / self.numel if self.numel else 0.0


class Vectors:
    """Lookups and uploads. Every method may block on the disk: call them in a thread."""

    def __init__(self, store: DirectoryStore) -> None:
        self.store = store
        self.summary = functools.lru_cache(MAX_SUMMARIES)(self._summary)

    def _summary(self, digest: str) -> Summary:
        return Summary.of(self.store.header(digest))

    def resolve(self, reference: Reference) -> ResolvedVector:
        """What `reference` stands for now; raises VectorNotFound."""
        found = self.store.resolve(reference)
        fingerprint = self.summary(found.digest).base_fingerprint
        return ResolvedVector(found.name, found.version, found.digest, fingerprint)

    def entries(self) -> list["Listing"]:
        """Every named version; one that is removed meanwhile or that is broken is left out."""
        found = []
        for entry in self.store.entries():
            try:
                found.append(self._listing(entry))
            except VectorNotFound:
                continue
            except (InvalidFile, OSError) as error:
                log.warning("%s@%s is left out of the list: %s", entry.name, entry.version, error)
        return found

    def entry(self, reference: Reference) -> "Listing":
        """What `reference` stands for now; raises VectorNotFound."""
        if reference.path is not None:
            return self._listing(self.store.entry(reference))
        found = self.store.resolve(reference)
        if named := [entry for entry in self.store.entries() if entry.digest == found.digest]:
            return self._listing(named[-1])
        status, summary = self.store.path(found.digest).stat(), self.summary(found.digest)
        created = int(status.st_mtime)
        return Listing(None, None, found.digest, status.st_size, created, summary)

    def take(self, path: Path, digest: str, name: str, base: Base) -> "Listing":
        """Validate an uploaded file against the base, keep it, and name it."""
        validate_file(path, base_shapes=base.shapes, base_fingerprint=base.fingerprint)
        version = self.store.publish(path, digest, name)
        return self.entry(Reference.parse(f"{name}@{version}"))

    def _listing(self, entry: Entry) -> "Listing":
        summary = self.summary(entry.digest)
        return Listing(entry.name, entry.version, entry.digest, entry.size, entry.created, summary)


@dataclass(frozen=True)
class Listing:
    """A stored file with the name and version it was asked for by; a bare digest has neither."""

    name: str | None
    version: int | None
    digest: str
    size: int
    created: int
    summary: Summary
