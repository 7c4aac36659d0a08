"""Listings: filters, orders, and pages that begin where the one before ended.

Every order has an index that ends in a column without duplicates, so a page without filters reads
as many rows as it gives, however long the list is. Text is looked for in each row.
"""

from dataclasses import asdict
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, exists, or_, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from outfitter.control.rights import Kind, Viewer
from outfitter.errors import InvalidDetails
from outfitter.state.bounds import check_text, fold
from outfitter.state.cursors import from_cursor, to_cursor
from outfitter.state.grants import in_namespace, visible
from outfitter.state.models import LabelRow, LanguageRow, TagRow, VersionRow
from outfitter.state.records import LATEST, ORDERS, Page, Query
from outfitter.state.versions import LISTED, key_of, record

MAX_LIMIT = 1000
MAX_WORDS = 16
_MAX_FILTER = 1024


class Order(NamedTuple):
    """Columns of an order, the last of which tell rows apart, and the kinds of their values."""

    columns: tuple[InstrumentedAttribute[Any], ...]
    kinds: tuple[type, ...]


_ORDERS = {
    "name": Order((VersionRow.key, VersionRow.number), (str, int)),
    "created": Order((VersionRow.created, VersionRow.id), (int, int)),
    "downloads": Order((VersionRow.downloads, VersionRow.id), (int, int)),
    "size": Order((VersionRow.size, VersionRow.id), (int, int)),
}
_BY_NAME = Order((VersionRow.key,), (str,))
"""Enough where each name has one row, and there the index of the latest has it."""


def check_query(query: Query) -> None:
    """Raise InvalidDetails for a query that cannot be."""
    if query.order.removeprefix("-") not in ORDERS:
        choices = ", ".join((*ORDERS, *(f"-{order}" for order in ORDERS)))
        raise InvalidDetails(f"unknown order {query.order[:80]!r}; choose {choices}")
    if not 1 <= query.limit <= MAX_LIMIT:
        raise InvalidDetails(f"invalid limit {query.limit}; use 1 to {MAX_LIMIT}")
    for what in ("text", "namespace", "name", "base", "license", "tag", "label", "language"):
        check_text(getattr(query, what), f"the filter {what!r}", _MAX_FILTER)
    if query.text and len(query.text.split()) > MAX_WORDS:
        raise InvalidDetails(f"the text has more than {MAX_WORDS} words to look for")


def find(session: Session, query: Query, viewer: Viewer | None = None) -> Page:
    """A page of a checked query, of what `viewer` may see.

    Raises InvalidDetails for a cursor of another query.
    """
    order = _order(query)
    question = _question(query)
    statement = _ordered(_filtered(query, viewer), query, order)
    if query.after is not None:
        position = from_cursor(question, query.after, order.kinds)
        statement = statement.where(_beyond(order, position, query.order.startswith("-")))
    rows = session.scalars(statement.limit(query.limit + 1).options(*LISTED)).all()
    page = rows[: query.limit]
    after = None
    if len(rows) > query.limit:
        last = page[-1]
        after = to_cursor(question, [getattr(last, column.key) for column in order.columns])
    return Page(tuple(record(row, listed=True) for row in page), after)


def _question(query: Query) -> dict[str, object]:
    """What two pages of one listing have in common."""
    return {key: value for key, value in asdict(query).items() if key not in ("limit", "after")}


def _order(query: Query) -> Order:
    wanted = query.order.removeprefix("-")
    return _BY_NAME if wanted == "name" and not _is_every(query) else _ORDERS[wanted]


def _is_every(query: Query) -> bool:
    """Whether a name may have several rows; a tag points at one version of a name."""
    return query.every_version and query.tag is None


def _ordered(statement: Select[VersionRow], query: Query, order: Order) -> Select[VersionRow]:
    descends = query.order.startswith("-")
    return statement.order_by(*(c.desc() if descends else c.asc() for c in order.columns))


def _beyond(order: Order, position: list[str | int], descends: bool) -> ColumnElement[bool]:
    row = tuple_(*order.columns)
    return row < tuple_(*position) if descends else row > tuple_(*position)


def _filtered(query: Query, viewer: Viewer | None) -> Select[VersionRow]:
    seen = visible(viewer, Kind.TASK_VECTOR, VersionRow.key)
    statement = select(VersionRow).where(_which(query), seen)
    if query.namespace is not None:
        statement = statement.where(in_namespace(VersionRow.key, key_of(query.namespace)))
    if query.name is not None:
        statement = statement.where(VersionRow.key == key_of(query.name))
    if query.base is not None:
        named = (VersionRow.base_fingerprint == query.base, VersionRow.base_name == query.base)
        statement = statement.where(or_(*named))
    if query.license is not None:
        statement = statement.where(VersionRow.license == query.license)
    for table, text in ((LabelRow, query.label), (LanguageRow, query.language)):
        if text is not None:
            has = exists().where(table.version_id == VersionRow.id, table.text == text)
            statement = statement.where(has)
    for word in fold(query.text or "").split():
        statement = statement.where(VersionRow.search.contains(word, autoescape=True))
    return statement


def _which(query: Query) -> ColumnElement[bool]:
    if query.tag not in (None, LATEST):
        points = exists().where(TagRow.version_id == VersionRow.id, TagRow.tag == query.tag)
        return points & ~VersionRow.deleted
    return ~VersionRow.deleted if _is_every(query) else VersionRow.is_latest.is_(True)
