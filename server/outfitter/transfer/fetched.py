"""What a source gave, beside the file."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from outfitter.state.records import Details

Progress = Callable[[int, int | None], None]
"""Told the bytes of each step, and the size of the whole where it is known."""


@dataclass(frozen=True)
class Fetched:
    """Where a file came from, and what its source says of it.

    source: without secrets. revision: what exactly was fetched, such as a commit or a digest.
    name: the last part of a name that would fit.
    """

    source: str
    revision: str | None = None
    name: str | None = None
    details: Details = field(default_factory=Details)
    signature: str | None = None


def no_progress(_step: int, _total: int | None) -> None:
    """Tell nobody."""


class Fetch(Protocol):
    """Fetches the one task vector file that a URL names.

    Writes it to `target`, a fresh path, and never more than `limit` bytes. Raises SourceFailed.
    """

    def __call__(self, url: str, target: Path, *, limit: int, progress: Progress) -> Fetched:
        """Fetch."""
        ...
