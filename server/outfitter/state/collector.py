"""Collection: which files nothing names any more, decided and dropped one by one.

The row of a file is its lock. A publisher takes it twice: to claim the file before it is placed,
and to give it a name. So a claim that comes while the file is dropped waits, and the file is placed
anew; and a name that comes without a new claim is refused. A file without a row was never published
by this catalog: it may be another's, and stays.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from sqlalchemy import select
from sqlalchemy.orm import Session

from outfitter.state.database import Database
from outfitter.state.files import BATCH, lock_file
from outfitter.state.kept import KEPT
from outfitter.state.models import FileRow, VersionRow
from outfitter.state.records import Collected
from outfitter.state.versions import is_used
from taskvectors.errors import TaskVectorError
from taskvectors.store.tier import StoredFile

log = logging.getLogger(__name__)


def collect(
    database: Database,
    files: Iterable[StoredFile],
    drop: Callable[[str], None],
    grace_s: float,
    *,
    dry_run: bool,
) -> Collected:
    """Drop what is not needed; see Catalog.collect. Raises CatalogUnavailable."""
    seen = nbytes = 0
    digests: list[str] = []
    failed: list[str] = []
    for batch in _batches(files):
        seen += len(batch)
        with database.reading() as session:
            needed = _needed(session, [file.digest for file in batch])
        for file in batch:
            if file.digest in needed or not _is_old(file.modified, grace_s):
                continue
            if not dry_run:
                outcome = _drop(database, file, drop, grace_s)
                failed += [file.digest] if outcome is None else []
                if not outcome:
                    continue
            elif not _would_drop(database, file, grace_s):
                continue
            digests.append(file.digest)
            nbytes += file.size
    return Collected(tuple(digests), nbytes, seen - len(digests) - len(failed), tuple(failed))


def _drop(
    database: Database, file: StoredFile, drop: Callable[[str], None], grace_s: float
) -> bool | None:
    """Whether the file went; None if that failed halfway."""
    with database.changing() as session:
        if session.get(FileRow, file.digest) is None:  # another catalog's, in a shared origin
            return False
        row = lock_file(session, file.digest)
        if is_used(session, file.digest) or not _is_old(row.claimed, grace_s):
            return False
        row.collected = True  # also if it fails: some place may have lost it
        try:
            drop(file.digest)
        except (TaskVectorError, OSError) as error:
            log.warning("could not drop sha256:%s everywhere: %s", file.digest, error)
            return None
    return True


def _would_drop(database: Database, file: StoredFile, grace_s: float) -> bool:
    with database.reading() as session:
        row = session.get(FileRow, file.digest)
        return row is not None and _is_old(row.claimed, grace_s)


def _is_old(moment: float, grace_s: float) -> bool:
    return time.time() - moment >= grace_s


def _needed(session: Session, digests: Sequence[str]) -> set[str]:
    """Those that something names now; the others are looked at again, one by one."""
    found: set[str] = set()
    for column in (VersionRow.digest, *KEPT):
        found |= set(session.scalars(select(column).where(column.in_(digests))))
    return found


def _batches(files: Iterable[StoredFile]) -> Iterator[Sequence[StoredFile]]:
    iterator = iter(files)
    while batch := list(islice(iterator, BATCH)):
        yield batch
