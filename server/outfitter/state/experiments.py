"""Experiments as rows: made, found, changed version by version."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, false, func, or_, select
from sqlalchemy.orm import Session

from outfitter.control.experiments.allotment import Allotment
from outfitter.control.experiments.definition import Definition
from outfitter.control.experiments.experiment import Experiment, Made, Pending, Pin
from outfitter.control.experiments.status import Status
from outfitter.control.rights import Kind, Viewer
from outfitter.errors import CatalogConflict, ExperimentNotFound, InvalidDetails
from outfitter.state import events
from outfitter.state.bounds import check_text
from outfitter.state.cursors import from_cursor, to_cursor
from outfitter.state.experiment_rows import (
    ExperimentRow,
    ExperimentVectorRow,
    ExperimentVersionRow,
)
from outfitter.state.files import lock_file
from outfitter.state.grants import forget, in_namespace, visible
from outfitter.state.publishing import drop_tombstones
from outfitter.state.versions import key_of
from taskvectors.errors import VectorNotFound

MAX_LIMIT = 1000
MAX_TEXT = 2**20
"""Characters of a definition, and of figures, as JSON."""
_QUESTION = "experiments"


def create(session: Session, experiment: Experiment) -> Experiment:
    """Write down the first version. Raises CatalogConflict for a name that is taken.

    Events of a former one of this name, which came after it was deleted, go.
    """
    key, now = key_of(experiment.name), int(time.time())
    row = session.get(ExperimentRow, key)
    if row is not None:
        raise CatalogConflict(f"there is an experiment {row.path!r} already; choose another name")
    made = replace(experiment, version=1, created=now, made=replace(experiment.made, at=now))
    path, seed = made.name, made.seed
    status = str(made.status)
    row = ExperimentRow(key=key, path=path, seed=seed, created=now, number=1, status=status)
    session.add(row)
    session.flush()
    events.forget(session, made.name)
    _add(session, key, made)
    return made


def find(session: Session, name: str, viewer: Viewer | None = None) -> Experiment:
    """An experiment as it is now, for whoever looks. Raises ExperimentNotFound."""
    query = _latest().where(ExperimentRow.path == name, ExperimentRow.key == key_of(name))
    found = session.execute(query.where(_seen_by(viewer))).first()
    if found is None:
        raise _not_found(name)
    return record(*found)


def append(session: Session, experiment: Experiment) -> Experiment:
    """Write down the next version, which is numbered here. Raises ExperimentNotFound."""
    row = session.get(ExperimentRow, key_of(experiment.name))
    if row is None:
        raise _not_found(experiment.name)
    now = int(time.time())
    made = replace(experiment.made, at=now)
    new = replace(experiment, version=row.number + 1, made=made)
    row.number, row.status = new.version, str(new.status)
    _add(session, row.key, new)
    return new


def page(
    session: Session,
    limit: int,
    after: str | None,
    viewer: Viewer | None = None,
    status: Status | None = None,
) -> tuple[tuple[Experiment, ...], str | None]:
    """Those that may be seen, by name. Raises InvalidDetails for a wrong limit or cursor."""
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidDetails(f"invalid limit {limit}; use 1 to {MAX_LIMIT}")
    query = _latest().where(_seen_by(viewer)).order_by(ExperimentRow.key)
    if status is not None:
        query = query.where(ExperimentRow.status == str(status))
    question = [_QUESTION, None if status is None else str(status)]
    if after is not None:
        query = query.where(ExperimentRow.key > from_cursor(question, after, [str])[0])
    rows = session.execute(query.limit(limit + 1)).all()
    end = to_cursor(question, [rows[limit - 1][0].key]) if len(rows) > limit else None
    return tuple(record(*row) for row in rows[:limit]), end


def versions(session: Session, name: str, limit: int = MAX_LIMIT) -> tuple[Experiment, ...]:
    """The newest versions, newest first. Raises ExperimentNotFound."""
    query = _pairs().where(ExperimentRow.path == name, ExperimentRow.key == key_of(name))
    query = query.order_by(ExperimentVersionRow.number.desc()).limit(limit)
    found = tuple(record(*row) for row in session.execute(query))
    if not found:
        raise _not_found(name)
    return found


def count(session: Session, namespaces: Sequence[str] | None) -> int:
    """How many there are in some namespaces, all of them when None."""
    chosen = select(func.count()).select_from(ExperimentRow)
    if namespaces is not None:
        own = (in_namespace(ExperimentRow.key, key_of(one)) for one in namespaces)
        chosen = chosen.where(or_(false(), *own))
    return int(session.scalar(chosen) or 0)


def remove(session: Session, name: str) -> None:
    """Forget an experiment with its versions and events. Raises ExperimentNotFound."""
    found = find(session, name)
    key = key_of(found.name)
    _need(session, key, ())
    events.forget(session, found.name)
    for table in (ExperimentVersionRow, ExperimentRow):
        session.execute(delete(table).where(table.key == key))
    forget(session, Kind.EXPERIMENT, [key])


def need(session: Session, experiment: Experiment) -> None:
    """Keep the files that its variants were resolved to, and no others.

    Raises VectorNotFound for one that was collected meanwhile.
    """
    digests = {d for pin in experiment.pins.values() for d in pin.plan.loadout.digests}
    for digest in sorted(digests):
        if lock_file(session, digest).collected:
            raise VectorNotFound(f"no task vector 'sha256:{digest}': it was deleted meanwhile")
    _need(session, key_of(experiment.name), sorted(digests))


def record(row: ExperimentRow, version: ExperimentVersionRow) -> Experiment:
    """The rows as a record."""
    allotment, pending = _read(version.allotment), _read(version.pending)
    pins: dict[str, dict[str, Any]] = _read(version.pins)
    figures = _read(version.figures)
    return Experiment(
        Definition.parse(_read(version.definition)),
        row.seed,
        version.number,
        Status(version.status),
        version.step,
        None if allotment is None else Allotment.from_json(allotment),
        {key: Pin(**fields) for key, fields in pins.items()},
        version.winner,
        None if pending is None else Pending(**pending),
        tuple(_read(version.forbidden)),
        row.created,
        version.started,
        version.stepped,
        Made(version.action, version.at, version.tenant, version.actor, figures),
    )


def _add(session: Session, key: str, made: Experiment) -> None:
    allotment, pending = made.allotment, made.pending
    row = ExperimentVersionRow(
        key=key,
        number=made.version,
        status=str(made.status),
        step=made.step,
        definition=_text(made.definition.to_json(), "the definition"),
        allotment=None if allotment is None else _text(allotment.to_json(), "the allotment"),
        pins=_text({k: pin.to_json() for k, pin in made.pins.items()}, "the variants"),
        winner=made.winner,
        pending=None if pending is None else _text(pending.to_json(), "the figures"),
        forbidden=_text(list(made.forbidden), "what is forbidden"),
        started=made.started,
        stepped=made.stepped,
        action=made.made.action,
        at=made.made.at,
        tenant=made.made.tenant,
        actor=made.made.key,
        figures=_text(dict(made.made.figures), "the figures"),
    )
    session.add(row)
    session.flush()


def _need(session: Session, key: str, digests: Sequence[str]) -> None:
    table = ExperimentVectorRow
    before = session.scalars(select(table.digest).where(table.key == key)).all()
    session.execute(delete(table).where(table.key == key))
    session.add_all(table(key=key, digest=digest) for digest in digests)
    session.flush()
    drop_tombstones(session, sorted({*before} - {*digests}))


def _pairs() -> Select[ExperimentRow, ExperimentVersionRow]:
    return select(ExperimentRow, ExperimentVersionRow).join(
        ExperimentVersionRow, ExperimentVersionRow.key == ExperimentRow.key
    )


def _latest() -> Select[ExperimentRow, ExperimentVersionRow]:
    return _pairs().where(ExperimentVersionRow.number == ExperimentRow.number)


def _seen_by(viewer: Viewer | None) -> ColumnElement[bool]:
    return visible(viewer, Kind.EXPERIMENT, ExperimentRow.key)


def _not_found(name: str) -> ExperimentNotFound:
    return ExperimentNotFound(f"no experiment {name[:200]!r}")


def _read(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _text(value: object, what: str) -> str:
    """As the database keeps it; raises InvalidDetails."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidDetails(f"{what} of the experiment are not JSON: {error}") from error
    check_text(text, what, MAX_TEXT)
    return text
