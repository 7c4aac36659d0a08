"""The fate of files by digest: claimed, collected, and the row that is their lock."""

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from outfitter.state.models import FileRow

T = TypeVar("T")
BATCH = 500

_CLAIM = text(
    "INSERT INTO files (digest, claimed, collected) VALUES (:digest, :claimed, false)"
    " ON CONFLICT (digest) DO UPDATE SET claimed = excluded.claimed, collected = false"
)
_ENSURE = text(
    "INSERT INTO files (digest, claimed, collected) VALUES (:digest, 0, false)"
    " ON CONFLICT (digest) DO NOTHING"
)


def claim(session: Session, digest: str) -> None:
    """Keep the collector from a file that is about to be placed; waits for one at work on it."""
    session.execute(_CLAIM, {"digest": digest, "claimed": time.time()})


def lock_file(session: Session, digest: str) -> FileRow:
    """The row of a file, locked until the transaction ends."""
    session.execute(_ENSURE, {"digest": digest})
    query = select(FileRow).where(FileRow.digest == digest).with_for_update()
    return session.scalars(query.execution_options(populate_existing=True)).one()


def batched(items: Sequence[T], size: int = BATCH) -> Iterator[Sequence[T]]:
    """The items in order, some at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
