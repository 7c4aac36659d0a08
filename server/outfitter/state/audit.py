"""The trail: who changed what, and which key used which loadout."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from outfitter.control.principal import Principal
from outfitter.errors import InvalidDetails
from outfitter.state.cursors import from_cursor, to_cursor
from outfitter.state.models import AuditRow, LoadoutUseRow
from outfitter.state.tenancy import Entry, TrailQuery, Use

MAX_LIMIT = 1000
MAX_SUBJECT = 512
MAX_REQUEST_ID = 128

Row = TypeVar("Row", AuditRow, LoadoutUseRow)


def record(
    session: Session,
    principal: Principal,
    action: str,
    subject: str,
    request_id: str | None = None,
    detail: Mapping[str, object] | None = None,
) -> None:
    """Write a change down, in the transaction that makes it."""
    row = AuditRow(
        at=int(time.time()),
        tenant=principal.tenant,
        key=principal.key,
        action=action,
        subject=subject[:MAX_SUBJECT],
        request_id=None if request_id is None else request_id[:MAX_REQUEST_ID],
        detail=json.dumps(detail or {}, sort_keys=True),
    )
    session.add(row)


def changes(session: Session, query: TrailQuery) -> tuple[tuple[Entry, ...], str | None]:
    """A page of changes, and the cursor of the next. Raises InvalidDetails for a wrong cursor."""
    asked = {"tenant": query.tenant, "key": query.key}
    asked |= {"action": query.action, "subject": query.subject}
    times = (AuditRow.at, AuditRow.at)
    rows, after = _page(session, AuditRow, query, asked, times, {"id": int})
    return tuple(_entry(row) for row in rows), after


def uses(session: Session, query: TrailQuery) -> tuple[tuple[Use, ...], str | None]:
    """A page of loadouts by hour, tenant and key. Raises InvalidDetails for a wrong cursor."""
    asked = {"tenant": query.tenant, "key": query.key, "loadout": query.loadout}
    times = (LoadoutUseRow.last, LoadoutUseRow.first)
    order = {"hour": int, "tenant": str, "key": str, "loadout": str}
    rows, after = _page(session, LoadoutUseRow, query, asked, times, order)
    return tuple(_use(row) for row in rows), after


def _page(
    session: Session,
    table: type[Row],
    query: TrailQuery,
    asked: Mapping[str, str | None],
    times: tuple[Any, Any],
    order: Mapping[str, type],
) -> tuple[Sequence[Row], str | None]:
    """Rows of a table, the newest first, and the cursor of the next page.

    asked: what columns must be. times: the columns that `since` and `until` are held against.
    order: the columns of the primary key, and their types.
    """
    _check(query)
    key = [getattr(table, name) for name in order]
    statement = select(table).order_by(*(column.desc() for column in key))
    for name, value in asked.items():
        if value is not None:
            statement = statement.where(getattr(table, name) == value)
    if query.since is not None:
        statement = statement.where(times[0] >= query.since)
    if query.until is not None:
        statement = statement.where(times[1] < query.until)
    question = [table.__tablename__, asked, query.since, query.until]
    if query.after is not None:
        position = from_cursor(question, query.after, [*order.values()])
        statement = statement.where(tuple_(*key) < tuple_(*position))
    rows = session.scalars(statement.limit(query.limit + 1)).all()
    page = rows[: query.limit]
    if len(rows) <= query.limit:
        return page, None
    return page, to_cursor(question, [getattr(page[-1], name) for name in order])


def _check(query: TrailQuery) -> None:
    if not 1 <= query.limit <= MAX_LIMIT:
        raise InvalidDetails(f"invalid limit {query.limit}; use 1 to {MAX_LIMIT}")


def _entry(row: AuditRow) -> Entry:
    detail = json.loads(row.detail)
    return Entry(row.at, row.tenant, row.key, row.action, row.subject, row.request_id, detail)


def _use(row: LoadoutUseRow) -> Use:
    key = row.key or None
    return Use(row.hour, row.tenant, key, row.loadout, row.count, row.first, row.last)
