"""What each key used: sums by day, tenant, key and model, each batch of them added once."""

import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from typing import Any, NamedTuple

from sqlalchemy import delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from outfitter.state.database import Database
from outfitter.state.models import KeyRow, UsageRow, UsageWriterRow

MAX_ROWS = 50_000
"""Of an answer."""
FORGET_S = 30 * 24 * 3600
"""A process that wrote nothing for so long does not try a batch again."""
_BATCH = 500


class UsageKey(NamedTuple):
    """Whose usage of what, and when; see `UsageRow`."""

    day: str
    tenant: str
    key: str
    model: str


@dataclass
class Used:
    """Sums over requests. errors: those that failed or were refused."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    errors: int = 0


GROUPS = UsageKey._fields
COUNTS = tuple(item.name for item in fields(Used))


@dataclass(frozen=True)
class UsageQuery:
    """Sums of the days from `first` to `last`, both included.

    tenant: None for all of them. Else only what its keys used, which it has or had: not those of
    another tenant of this name, which was deleted.
    """

    first: str
    last: str
    group_by: tuple[str, ...] = ("day",)
    tenant: str | None = None


class UsageTable:
    """The table of usage. Every method may block, and raises CatalogUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, writer: str, number: int, rows: Mapping[UsageKey, Used]) -> None:
        """Add a batch, unless it was added before: `writer` counts its batches from 1."""
        insert = _insert_of(self._database.is_sqlite)
        values = [
            {**key._asdict(), **dict(zip(COUNTS, astuple(used), strict=True))}
            for key, used in sorted(rows.items())  # in one order, so that writers never deadlock
        ]
        with self._database.changing() as session:
            if not is_next(session, writer, number):
                return
            given = insert(UsageRow)
            sums = {name: getattr(UsageRow, name) + given.excluded[name] for name in COUNTS}
            added = given.on_conflict_do_update(index_elements=list(GROUPS), set_=sums)
            for start in range(0, len(values), _BATCH):
                session.execute(added, values[start : start + _BATCH])

    def find(self, query: UsageQuery) -> list[dict[str, Any]]:
        """Rows of the groups and the sums, in the order of the groups; one more than `MAX_ROWS`
        when there are more."""
        groups = [getattr(UsageRow, name) for name in query.group_by]
        sums = [func.coalesce(func.sum(getattr(UsageRow, name)), 0) for name in COUNTS]
        chosen = select(*groups, *sums).where(UsageRow.day.between(query.first, query.last))
        if query.tenant is not None:
            its_keys = select(KeyRow.id).where(KeyRow.tenant == query.tenant)
            chosen = chosen.where(UsageRow.tenant == query.tenant, UsageRow.key.in_(its_keys))
        chosen = chosen.group_by(*groups).order_by(*groups).limit(MAX_ROWS + 1)
        names, num_groups = (*query.group_by, *COUNTS), len(groups)
        with self._database.reading() as session:
            return [
                dict(zip(names, (*row[:num_groups], *map(int, row[num_groups:])), strict=True))
                for row in session.execute(chosen)
            ]


def is_next(session: Session, writer: str, number: int) -> bool:
    """Whether a batch was not added yet; it counts as added from here on."""
    insert = _insert_of(session.get_bind().dialect.name == "sqlite")
    now = int(time.time())
    session.execute(delete(UsageWriterRow).where(UsageWriterRow.seen < now - FORGET_S))
    given = insert(UsageWriterRow).values(id=writer, flushed=number, seen=now)
    counted = given.on_conflict_do_update(
        index_elements=["id"],
        set_={"flushed": number, "seen": now},
        where=UsageWriterRow.flushed < number,
    )
    return session.execute(counted.returning(UsageWriterRow.id)).first() is not None


def _insert_of(is_sqlite: bool) -> Any:
    return sqlite.insert if is_sqlite else postgresql.insert
