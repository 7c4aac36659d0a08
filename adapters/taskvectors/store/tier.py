"""What every tier of a store promises: a place that may hold task vector files, by digest."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

Progress = Callable[[int], None]
"""Told how many bytes, from the start, are in place."""


@dataclass(frozen=True)
class TierStats:
    """What a tier has done since the process started, and what it holds now.

    hits, misses: of loads that asked here. errors: refusals to answer. corrupt: files or chunks
    that were dropped because of their digest. evictions: files dropped for room. read_bytes,
    written_bytes: moved. seconds: spent reading. nbytes, budget: held now and at most, None when
    the tier cannot say. is_up: False while its breaker is open.
    """

    hits: int = 0
    misses: int = 0
    errors: int = 0
    corrupt: int = 0
    evictions: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    seconds: float = 0.0
    nbytes: int | None = None
    budget: int | None = None
    is_up: bool = True


class Tier(Protocol):
    """A tier holds whole files by digest. It may be slow, wrong, full or away.

    What it gives is not trusted: whoever reads it checks the digest. Every method may be called
    from many threads at once, waits a bounded time, and raises nothing but what is named.
    """

    name: str

    def size(self, digest: str) -> int | None:
        """Bytes of the file; None when it is not here. Raises TierUnavailable."""
        ...

    def fill(self, digest: str, buffer: memoryview, progress: Progress) -> None:
        """Read the whole file into `buffer`, which has its size.

        Calls `progress(n)` whenever the first n bytes are in place, so that they can be hashed
        while the rest arrives. Raises VectorNotFound when it has gone meanwhile (or a part of it
        was damaged, and dropped), TierUnavailable.
        """
        ...

    def head(self, digest: str, nbytes: int) -> bytes | None:
        """The first `nbytes` of the file, or all of a shorter one; None when it is not here.

        Raises TierUnavailable.
        """
        ...

    def put(self, digest: str, data: memoryview) -> bool:
        """Keep a file whose digest was checked; False when there is no room for it now.

        Again is the same as once. Raises TierUnavailable.
        """
        ...

    def drop(self, digest: str) -> None:
        """Forget a file, damaged or collected. Raises TierUnavailable."""
        ...

    def stats(self) -> TierStats:
        """Counts so far; never waits for the network."""
        ...


@dataclass(frozen=True)
class StoredFile:
    """A file in the directory store. modified: Unix time in seconds."""

    digest: str
    size: int
    modified: float


class Durable(Tier, Protocol):
    """A tier that keeps what was put there: the directory, or the shared origin."""

    def files(self) -> Iterator[StoredFile]:
        """Everything that is kept, in no useful order. Raises TierUnavailable."""
        ...
