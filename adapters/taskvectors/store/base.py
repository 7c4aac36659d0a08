"""What every store of task vector files promises."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from taskvectors.format import FileHeader
from taskvectors.spec import Reference


@dataclass(frozen=True)
class Entry:
    """One version of one name. name: `name` or `namespace/name`. created: Unix time, seconds."""

    name: str
    version: int
    digest: str
    created: int
    size: int


@dataclass(frozen=True)
class Resolved:
    """What a reference stands for now; a bare digest has neither name nor version."""

    name: str | None
    version: int | None
    digest: str


class Store(Protocol):
    """Task vector files by digest, and names with immutable versions for them.

    Every method may be called from many threads and processes at once.
    """

    def add(self, path: Path) -> str:
        """Validate a file and copy it in; return its digest. Again is the same as once."""
        ...

    def new_upload(self) -> Path:
        """A fresh path to write a file to, for `adopt`. Nothing is there yet."""
        ...

    def adopt(self, temp_path: Path, digest: str) -> Path:
        """Take over a file from `new_upload`; return its place. The caller has validated it."""
        ...

    def publish(self, temp_path: Path, digest: str, name_path: str) -> int:
        """`adopt` and `assign` at once; return the version."""
        ...

    def path(self, digest: str) -> Path:
        """Where the file lies; raises VectorNotFound."""
        ...

    def header(self, digest: str) -> FileHeader:
        """The file's checked header; raises VectorNotFound, InvalidFile."""
        ...

    def assign(self, name_path: str, digest: str) -> int:
        """Give a stored file the next version of a name; return it.

        The digest of the latest version keeps that version. Raises VectorNotFound when the file
        is not here, InvalidReference for a name that cannot be one.
        """
        ...

    def resolve(self, reference: Reference) -> Resolved:
        """The file that a reference names now; raises VectorNotFound, which suggests names."""
        ...

    def entry(self, reference: Reference) -> Entry:
        """What a name stands for now; raises VectorNotFound, InvalidReference for a bare digest."""
        ...

    def entries(self) -> list[Entry]:
        """Every version of every name that can be read, sorted."""
        ...

    def remove(self, reference: Reference) -> None:
        """Forget a name, or one version; drop files that no name is left for.

        Raises VectorNotFound; VectorInUse for a bare digest that still has a name.
        """
        ...
