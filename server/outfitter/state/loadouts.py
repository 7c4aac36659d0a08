"""Saved loadouts: versions of a name, and the files that they keep."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Select, delete, select, update
from sqlalchemy.orm import Session, selectinload

from outfitter.control.rights import Kind, Viewer
from outfitter.errors import CatalogConflict, InvalidDetails
from outfitter.state.bounds import MAX_DESCRIPTION, MAX_PUBLISHER, MAX_REQUEST, check_text
from outfitter.state.cursors import from_cursor, to_cursor
from outfitter.state.files import lock_file
from outfitter.state.grants import forget, visible
from outfitter.state.models import LoadoutNameRow, LoadoutRow, LoadoutVectorRow
from outfitter.state.publishing import drop_tombstones
from outfitter.state.records import REQUEST_VECTORS, SavedLoadout, Terms
from outfitter.state.versions import key_of, path_of
from taskvectors.errors import VectorNotFound
from taskvectors.spec import Loadout, Reference

MAX_LIMIT = 1000
_QUESTION = "loadouts"


@dataclass(frozen=True)
class Entry:
    """What is to be saved. request, described: JSON."""

    loadout: Loadout
    request: str
    publisher: str | None
    terms: Terms
    described: str | None

    @classmethod
    def of(
        cls,
        loadout: Loadout,
        request: Mapping[str, object],
        publisher: str | None,
        terms: Terms,
    ) -> "Entry":
        """Raises InvalidDetails for what the catalog cannot hold."""
        check_text(publisher, "the publisher", MAX_PUBLISHER)
        check_text(terms.description, "the description", MAX_DESCRIPTION)
        if terms.request_vectors not in REQUEST_VECTORS:
            wrong, right = terms.request_vectors[:80], ", ".join(REQUEST_VECTORS)
            raise InvalidDetails(f"unsupported request_vectors {wrong!r}; choose {right}")
        described = None if terms.described is None else _json(terms.described)
        return cls(loadout, _json(request), publisher, terms, described)

    def is_in(self, row: LoadoutRow) -> bool:
        """Whether a version says all of this."""
        terms = self.terms
        said = (row.request_vectors, row.description, row.base_fingerprint)
        return (row.digest, row.request, *said) == (
            *(self.loadout.digest, self.request),
            *(terms.request_vectors, terms.description, terms.base_fingerprint),
        )


def save(session: Session, reference: Reference, entry: Entry) -> SavedLoadout:
    """The new version, or the latest if it is the same. Raises CatalogConflict, VectorNotFound."""
    for digest in sorted(entry.loadout.digests):
        if lock_file(session, digest).collected:
            raise VectorNotFound(f"no task vector 'sha256:{digest}': it was deleted meanwhile")
    name = _name_row(session, reference)
    latest = session.scalars(_rows(reference).where(LoadoutRow.is_latest)).first()
    if latest is not None and entry.is_in(latest):
        return record(latest)
    _add(session, name, entry)
    return record(find(session, reference, None))


def find(
    session: Session, reference: Reference, number: int | None, viewer: Viewer | None = None
) -> LoadoutRow:
    """The version, the latest for None, for whoever looks. Raises VectorNotFound."""
    which = LoadoutRow.is_latest if number is None else LoadoutRow.number == number
    row = session.scalars(_rows(reference).where(which, _seen_by(viewer))).first()
    if row is None:
        version = "" if number is None else f"@{number}"
        raise VectorNotFound(f"no saved loadout '{reference}{version}'")
    return row


def page(
    session: Session, limit: int, after: str | None, viewer: Viewer | None = None
) -> tuple[tuple[SavedLoadout, ...], str | None]:
    """The latest of each name, by name. Raises InvalidDetails for a wrong limit or cursor."""
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidDetails(f"invalid limit {limit}; use 1 to {MAX_LIMIT}")
    query = select(LoadoutRow).where(LoadoutRow.is_latest, _seen_by(viewer))
    query = query.order_by(LoadoutRow.key)
    if after is not None:
        query = query.where(LoadoutRow.key > from_cursor(_QUESTION, after, [str])[0])
    rows = session.scalars(query.limit(limit + 1).options(selectinload(LoadoutRow.name))).all()
    end = to_cursor(_QUESTION, [rows[limit - 1].key]) if len(rows) > limit else None
    return tuple(record(row) for row in rows[:limit]), end


def versions(
    session: Session, reference: Reference, viewer: Viewer | None = None
) -> tuple[SavedLoadout, ...]:
    """The newest MAX_LIMIT versions of a name, newest first. Raises VectorNotFound."""
    query = _rows(reference).where(_seen_by(viewer)).order_by(LoadoutRow.number.desc())
    found = tuple(record(row) for row in session.scalars(query.limit(MAX_LIMIT)))
    if not found:
        raise VectorNotFound(f"no saved loadout '{reference}'")
    return found


def move(session: Session, reference: Reference, number: int) -> SavedLoadout:
    """Let the bare name mean this version from now on. Raises VectorNotFound."""
    row = find(session, reference, number)
    former = update(LoadoutRow).where(LoadoutRow.key == row.key, LoadoutRow.is_latest)
    session.execute(former.values(is_latest=False))
    row.is_latest = True
    session.flush()
    return record(row)


def remove(session: Session, reference: Reference, number: int | None) -> None:
    """Delete a version, or all for None. Raises VectorNotFound."""
    find(session, reference, number)
    gone = select(LoadoutRow.id).where(LoadoutRow.key == key_of(path_of(reference)))
    if number is not None:
        gone = gone.where(LoadoutRow.number == number)
    its_digests = select(LoadoutVectorRow.digest).where(LoadoutVectorRow.loadout_id.in_(gone))
    digests = session.scalars(its_digests.distinct()).all()
    session.execute(delete(LoadoutRow).where(LoadoutRow.id.in_(gone)))
    _choose_latest(session, key_of(path_of(reference)))
    if session.scalars(_rows(reference)).first() is None:
        forget(session, Kind.LOADOUT, [key_of(path_of(reference))])
    drop_tombstones(session, digests)


def record(row: LoadoutRow) -> SavedLoadout:
    """The row as a record."""
    return SavedLoadout(
        row.name.path,
        row.number,
        row.digest,
        row.canonical,
        json.loads(row.request),
        row.created,
        row.publisher,
        Terms(
            row.request_vectors,
            row.description,
            row.base_fingerprint,
            None if row.described is None else json.loads(row.described),
        ),
        row.is_latest,
    )


def _seen_by(viewer: Viewer | None) -> ColumnElement[bool]:
    return visible(viewer, Kind.LOADOUT, LoadoutRow.key)


def _rows(reference: Reference) -> Select[LoadoutRow]:
    path = path_of(reference)
    return (
        select(LoadoutRow)
        .join(LoadoutRow.name)
        .where(LoadoutRow.key == key_of(path), LoadoutNameRow.path == path)
        .options(selectinload(LoadoutRow.name))
    )


def _name_row(session: Session, reference: Reference) -> LoadoutNameRow:
    path = path_of(reference)
    row = session.get(LoadoutNameRow, key_of(path))
    if row is None:
        row = LoadoutNameRow(key=key_of(path), path=path, next_version=1)
        session.add(row)
    elif row.path != path:
        living = select(LoadoutRow.id).where(LoadoutRow.key == row.key, LoadoutRow.is_latest)
        if session.scalar(living) is not None:
            raise CatalogConflict(
                f"{path!r} differs from {row.path!r} only in case; use that name or another"
            )
        row.path = path
    session.flush()
    return row


def _add(session: Session, name: LoadoutNameRow, entry: Entry) -> None:
    former = update(LoadoutRow).where(LoadoutRow.key == name.key, LoadoutRow.is_latest)
    session.execute(former.values(is_latest=False))
    row = LoadoutRow(
        key=name.key,
        number=name.next_version,
        is_latest=True,
        digest=entry.loadout.digest,
        canonical=entry.loadout.canonical,
        request=entry.request,
        created=int(time.time()),
        publisher=entry.publisher,
        request_vectors=entry.terms.request_vectors,
        description=entry.terms.description,
        base_fingerprint=entry.terms.base_fingerprint,
        described=entry.described,
    )
    session.add(row)
    session.flush()
    digests = sorted(entry.loadout.digests)
    session.add_all(LoadoutVectorRow(loadout_id=row.id, digest=digest) for digest in digests)
    name.next_version += 1
    session.flush()


def _choose_latest(session: Session, key: str) -> None:
    """The newest, where the latest has gone."""
    rows = select(LoadoutRow).where(LoadoutRow.key == key)
    if session.scalars(rows.where(LoadoutRow.is_latest)).first() is not None:
        return
    newest = session.scalars(rows.order_by(LoadoutRow.number.desc()).limit(1)).first()
    if newest is not None:
        newest.is_latest = True
        session.flush()


def _json(fields: Mapping[str, object]) -> str:
    """Text that the catalog can hold; raises InvalidDetails."""
    try:
        text = json.dumps(dict(fields), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidDetails(f"the request of a loadout is not JSON: {error}") from error
    check_text(text, "the request of a loadout", MAX_REQUEST)
    return text
