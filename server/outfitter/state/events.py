"""What experiments saw, as rows: written once, however often an event comes, and read."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    RowMapping,
    delete,
    func,
    select,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from outfitter.control.experiments.event import Event
from outfitter.control.experiments.feedback import Feedback
from outfitter.control.experiments.measures import Metric
from outfitter.control.experiments.mirrored import Mirrored
from outfitter.state.database import Database
from outfitter.state.event_rows import FeedbackRow, RequestRow, UnitRow
from outfitter.state.event_sums import moments_of
from outfitter.state.mirrored import mirrored_of
from outfitter.statistics.moments import Moments

BATCH = 500
KEEP_S = 30 * 24 * 3600
PAGE = 2_000
"""Rows that are read at once."""
_KEY = ("experiment", "request_id", "tenant", "variant")
_EXPOSED = ("experiment", "unit", "at", "variant", "is_counted", "is_shadow")


class Events:
    """The tables of events. Every method may block, and raises CatalogUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, events: Iterable[Event]) -> None:
        """Write down events, each once. Raises CatalogConflict, InvalidDetails."""
        rows = {}
        for event in events:
            key = tuple(getattr(event, name) for name in _KEY)
            if key not in rows or event.grades is not None:
                rows[key] = event.row()
        # In one order, so that writers never wait crosswise.
        ordered = [rows[key] for key in sorted(rows)]
        with self._database.changing() as session:
            insert = self._insert_of
            given = insert(RequestRow)
            kept = given.on_conflict_do_update(
                index_elements=list(_KEY),
                set_={"grades": given.excluded.grades},
                where=given.excluded.grades.is_not(None),
            )
            # A row that was there before is not told: its unit is there, too.
            told = kept.returning(*(getattr(RequestRow, name) for name in _EXPOSED))
            written: list[RowMapping] = []
            for start in range(0, len(ordered), BATCH):
                written += session.execute(told, ordered[start : start + BATCH]).mappings()
            first = insert(UnitRow)
            earliest = first.on_conflict_do_update(
                index_elements=["experiment", "unit"],
                set_={"variant": first.excluded.variant, "at": first.excluded.at},
                where=first.excluded.at < UnitRow.at,
            )
            units = _first_exposures(written)
            for start in range(0, len(units), BATCH):
                session.execute(earliest, units[start : start + BATCH])

    def add_feedback(self, tenant: str, given: Sequence[Feedback], at: float) -> None:
        """Write down what a tenant says of its requests; of one key, the last counts.

        Raises CatalogConflict, InvalidDetails.
        """
        rows = {one.key: one for one in given}
        values = [
            {"tenant": tenant, "at": at, **vars(rows[key])} for key in sorted(rows)
        ]  # in one order, too
        with self._database.changing() as session:
            insert = self._insert_of(FeedbackRow)
            changed = {name: insert.excluded[name] for name in ("value", "label", "at")}
            keys = ["tenant", "request_id", "metric", "id"]
            kept = insert.on_conflict_do_update(index_elements=keys, set_=changed)
            for start in range(0, len(values), BATCH):
                session.execute(kept, values[start : start + BATCH])

    def moments(
        self, experiment: str, metrics: Sequence[Metric], known: Mapping[str, Metric]
    ) -> dict[str, dict[str, Moments]]:
        """By metric's name and variant, over the units that count; see `Moments` for their numbers.

        known: every metric that may be a denominator or covariate, as `Definition.measured`. Only
        requests of a unit's first variant count. A variant without units is not there.
        """
        if not metrics:
            return {}
        with self._database.reading() as session:
            return moments_of(session, experiment, metrics, known)

    def units(self, experiment: str, since: float | None = None) -> dict[str, int]:
        """By variant: units that were first exposed to it. since: Unix time, seconds; or ever."""
        chosen = select(UnitRow.variant, func.count()).where(UnitRow.experiment == experiment)
        if since is not None:
            chosen = chosen.where(UnitRow.at >= since)
        with self._database.reading() as session:
            return {
                variant: int(number)
                for variant, number in session.execute(chosen.group_by(UnitRow.variant))
            }

    def mirrored(self, experiment: str, metrics: Sequence[Metric]) -> dict[str, Mirrored]:
        """By shadow variant that had requests, as `mirrored_of`."""
        with self._database.reading() as session:
            return mirrored_of(session, experiment, metrics)

    def rows(self, experiment: str) -> Iterator[dict[str, Any]]:
        """Every event, by request id: the columns, `grades` and `feedback` by name.

        feedback: the values and labels of each metric, in a list. Read page by page: what is
        written meanwhile may be there or not.
        """
        after: tuple[str, ...] = ()
        while True:
            with self._database.reading() as session:
                page = _page(session, experiment, after)
                told = _feedback(session, page)
            for row in page:
                key = (row["tenant"], row["request_id"])
                yield {**row, "grades": row["grades"] or {}, "feedback": told.get(key, {})}
            if len(page) < PAGE:
                return
            after = tuple(page[-1][name] for name in _KEY[1:])

    def forget(self, experiment: str) -> None:
        """Delete all events of an experiment, and the feedback on them."""
        with self._database.changing() as session:
            forget(session, experiment)

    def tidy(self) -> int:
        """Forget what was said long ago of requests that no experiment knows; how much."""
        before = time.time() - KEEP_S
        row = FeedbackRow
        old = select(row.tenant, row.request_id).where(row.at < before)
        unknown = old.except_(select(RequestRow.tenant, RequestRow.request_id))
        with self._database.changing() as session:
            found = session.execute(delete(row).where(row.at < before, _named(unknown)))
            return int(found.rowcount)  # type: ignore[attr-defined]

    def _insert_of(self, row: type[Any]) -> Any:
        return sqlite.insert(row) if self._database.is_sqlite else postgresql.insert(row)


def forget(session: Session, experiment: str) -> None:
    """The same within a transaction."""
    row = RequestRow
    ids = select(row.tenant, row.request_id)
    own, others = ids.where(row.experiment == experiment), ids.where(row.experiment != experiment)
    if session.execute(own.limit(1)).first() is not None:  # else there is nothing to look for
        session.execute(delete(FeedbackRow).where(_named(own.except_(others))))
    for table in (RequestRow, UnitRow):
        session.execute(delete(table).where(table.experiment == experiment))


def _named(requests: CompoundSelect[str, str]) -> ColumnElement[bool]:
    """Feedback on requests, which are tenants and ids."""
    return tuple_(FeedbackRow.tenant, FeedbackRow.request_id).in_(requests)


def _first_exposures(rows: Sequence[RowMapping]) -> list[dict[str, Any]]:
    """Of each unit among them the first one that counts."""
    names = _EXPOSED[:4]
    counted = [row for row in rows if row["is_counted"] and not row["is_shadow"]]
    ordered = sorted(tuple(row[name] for name in names) for row in counted)
    groups = groupby(ordered, key=lambda row: row[:2])
    return [dict(zip(names, next(group), strict=True)) for _, group in groups]


def _page(session: Session, experiment: str, after: tuple[str, ...]) -> list[dict[str, Any]]:
    table = RequestRow.__table__
    key = [table.c[name] for name in _KEY[1:]]
    chosen = select(table).where(table.c.experiment == experiment).order_by(*key).limit(PAGE)
    if after:
        chosen = chosen.where(tuple_(*key) > after)
    return [dict(row) for row in session.execute(chosen).mappings()]


def _feedback(
    session: Session, page: Sequence[Mapping[str, Any]]
) -> dict[tuple[str, str], dict[str, list[Any]]]:
    """By tenant and request, and by metric."""
    found: dict[tuple[str, str], dict[str, list[Any]]] = {}
    row = FeedbackRow
    for tenant in sorted({one["tenant"] for one in page}):
        ids = sorted({one["request_id"] for one in page if one["tenant"] == tenant})
        for start in range(0, len(ids), BATCH):
            chosen = select(row.request_id, row.metric, row.value, row.label)
            chosen = chosen.where(row.tenant == tenant)
            chosen = chosen.where(row.request_id.in_(ids[start : start + BATCH]))
            for request, metric, value, label in session.execute(
                chosen.order_by(row.request_id, row.metric, row.id)
            ):
                own = found.setdefault((tenant, request), {}).setdefault(metric, [])
                own.append(label if value is None else value)
    return found
