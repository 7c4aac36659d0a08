"""Where merges and comparisons read their vectors: files, or vectors in memory."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Protocol

from taskvectors.delta import Delta, Shape, shapes_differ
from taskvectors.errors import BaseMismatch
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


def common_base(sources: Sequence[Source]) -> BaseInfo:
    """The base of them all; raises BaseMismatch.

    Every pair is checked: a base without a fingerprint must not hide two that differ.
    """
    for one, other in itertools.combinations(sources, 2):
        try:
            one.base.merged(other.base)
        except BaseMismatch as error:
            raise BaseMismatch(
                f"{one.key!r} and {other.key!r} do not go together: {error}"
            ) from error
    return reduce(BaseInfo.merged, (source.base for source in sources))


def common_shapes(sources: Sequence[Source]) -> dict[str, Shape]:
    """Every parameter that one of them changes; raises BaseMismatch where two shapes differ."""
    shapes: dict[str, Shape] = {}
    for source in sources:
        for name, shape in source.shapes.items():
            if shapes.setdefault(name, shape) != shape:
                raise shapes_differ(name, shapes[name], shape)
    return shapes
