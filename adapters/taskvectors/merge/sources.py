"""Where a merge reads its vectors: files, a parameter at a time, or vectors in memory."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from taskvectors.delta import Delta, Shape
from taskvectors.format import VectorReader
from taskvectors.vector import BaseInfo, TaskVector


class Source(Protocol):
    """One vector."""

    @property
    def key(self) -> str:
        """Tells it from all others; the digest, for a file."""
        ...

    @property
    def base(self) -> BaseInfo:
        """The base that the vector belongs to."""
        ...

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """The parameters that it changes."""
        ...

    def delta(self, name: str) -> Delta:
        """The delta of one of `shapes`; reads it anew each time."""
        ...


@dataclass(frozen=True, eq=False)
class MemorySource:
    """A vector in memory."""

    key: str
    vector: TaskVector

    @property
    def base(self) -> BaseInfo:
        """The base that the vector belongs to."""
        return self.vector.base

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """The parameters that it changes."""
        return {name: delta.shape for name, delta in self.vector.parameters.items()}

    def delta(self, name: str) -> Delta:
        """The delta itself."""
        return self.vector.parameters[name]


@dataclass(frozen=True, eq=False)
class FileSource:
    """A vector file that stays open."""

    key: str
    reader: VectorReader

    @property
    def base(self) -> BaseInfo:
        """The base that the vector belongs to."""
        return self.reader.header.base

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """The parameters that it changes."""
        return {name: spec.shape for name, spec in self.reader.header.parameters.items()}

    def delta(self, name: str) -> Delta:
        """Read, checked."""
        return self.reader.delta(name)


@contextmanager
def open_files(files: Sequence[tuple[str, Path]]) -> Iterator[list[FileSource]]:
    """Files by their digests, each checked against it; raises InvalidFile, OSError."""
    with ExitStack() as stack:
        yield [
            FileSource(digest, stack.enter_context(VectorReader(path, expected_digest=digest)))
            for digest, path in files
        ]
