"""The trail: who changed what, and which key used which loadout."""

import json
import time
from collections.abc import Mapping

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
_CHANGES, _USES = "audit", "loadout_use"


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
    _check(query)
    asked = {"tenant": query.tenant, "key": query.key}
    asked |= {"action": query.action, "subject": query.subject}
    statement = select(AuditRow).order_by(AuditRow.id.desc())
    for name, value in asked.items():
        if value is not None:
            statement = statement.where(getattr(AuditRow, name) == value)
    if query.since is not None:
        statement = statement.where(AuditRow.at >= query.since)
    if query.until is not None:
        statement = statement.where(AuditRow.at < query.until)
    question = [_CHANGES, asked, query.since, query.until]
    if query.after is not None:
        statement = statement.where(AuditRow.id < from_cursor(question, query.after, [int])[0])
    rows = session.scalars(statement.limit(query.limit + 1)).all()
    page = rows[: query.limit]
    after = to_cursor(question, [page[-1].id]) if len(rows) > query.limit else None
    return tuple(_entry(row) for row in page), after


def uses(session: Session, query: TrailQuery) -> tuple[tuple[Use, ...], str | None]:
    """A page of loadouts by hour, tenant and key. Raises InvalidDetails for a wrong cursor."""
    _check(query)
    asked = {"tenant": query.tenant, "key": query.key, "loadout": query.loadout}
    row_ = LoadoutUseRow
    order = (row_.hour, row_.tenant, row_.key, row_.loadout)
    statement = select(row_).order_by(*(column.desc() for column in order))
    for name, value in asked.items():
        if value is not None:
            statement = statement.where(getattr(row_, name) == value)
    if query.since is not None:
        statement = statement.where(row_.last >= query.since)
    if query.until is not None:
        statement = statement.where(row_.first < query.until)
    question = [_USES, asked, query.since, query.until]
    if query.after is not None:
        position = from_cursor(question, query.after, [int, str, str, str])
        statement = statement.where(tuple_(*order) < tuple_(*position))
    rows = session.scalars(statement.limit(query.limit + 1)).all()
    page = rows[: query.limit]
    after = None
    if len(rows) > query.limit:
        after = to_cursor(question, [getattr(page[-1], column.key) for column in order])
    return tuple(_use(row) for row in page), after


def _check(query: TrailQuery) -> None:
    if not 1 <= query.limit <= MAX_LIMIT:
        raise InvalidDetails(f"invalid limit {query.limit}; use 1 to {MAX_LIMIT}")


def _entry(row: AuditRow) -> Entry:
    detail = json.loads(row.detail)
    return Entry(row.at, row.tenant, row.key, row.action, row.subject, row.request_id, detail)


def _use(row: LoadoutUseRow) -> Use:
    key = row.key or None
    return Use(row.hour, row.tenant, key, row.loadout, row.count, row.first, row.last)
