"""Versions come, go, and are pointed at: one change at a time."""

import time
from collections.abc import Sequence

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from outfitter.control.rights import Kind
from outfitter.errors import CatalogConflict
from outfitter.state.files import batched, lock_file
from outfitter.state.grants import forget
from outfitter.state.kept import KEPT
from outfitter.state.models import NameRow, TagRow, VersionRow
from outfitter.state.records import LATEST, Deletion, Publication
from outfitter.state.versions import key_of, not_found, path_of, rows_of, set_details
from taskvectors.spec import Reference, parse_tag


def settable(tag: str) -> str:
    """`tag`, if it may be set by hand; raises InvalidReference, CatalogConflict."""
    if tag == LATEST:
        raise CatalogConflict(
            f"{LATEST!r} cannot be set: it is always the newest version; choose another tag"
        )
    return parse_tag(tag)


def publish(session: Session, reference: Reference, publication: Publication) -> int:
    """The id of the new version, or of the newest if it has this digest. Raises CatalogConflict."""
    facts = publication.facts
    if lock_file(session, facts.digest).collected:
        raise CatalogConflict(
            f"the file sha256:{facts.digest} was collected before it had a name; publish it again"
        )
    name = name_row(session, reference)
    newest = session.scalars(
        select(VersionRow).where(VersionRow.key == name.key, VersionRow.is_latest)
    ).first()
    if newest is not None and newest.digest == facts.digest:
        row_id = newest.id
    else:
        row_id = add_version(session, name, name.next_version, publication, int(time.time()))
        name.next_version += 1
    for tag in publication.tags:
        point(session, name.key, tag, row_id)
    return row_id


def add_version(
    session: Session, name: NameRow, number: int, publication: Publication, created: int
) -> int:
    """The id of a new version."""
    facts = publication.facts
    row = VersionRow(
        key=name.key,
        number=number,
        digest=facts.digest,
        is_latest=False,
        deleted=False,
        created=created,
        publisher=publication.publisher,
        downloads=0,
        signature=publication.signature,
        size=facts.size,
        base_name=facts.base_name,
        base_fingerprint=facts.base_fingerprint,
        parameters=facts.parameters,
        nnz=facts.nnz,
        numel=facts.numel,
        method=facts.method,
    )
    set_details(row, name.path, publication.details)
    session.add(row)
    session.flush()
    choose_latest(session, name.key)
    return row.id


def point(session: Session, key: str, tag: str, row_id: int) -> None:
    """Move a tag to a version, or make it."""
    row = session.get(TagRow, (key, tag))
    if row is None:
        session.add(TagRow(key=key, tag=tag, version_id=row_id))
    else:
        row.version_id = row_id
    session.flush()


def remove(session: Session, reference: Reference) -> Deletion:
    """Delete what the reference names: every version of a bare name. Raises VectorNotFound."""
    path = path_of(reference)
    columns = (VersionRow.id, VersionRow.number, VersionRow.digest)
    rows = session.execute(rows_of(reference).with_only_columns(*columns)).all()
    if not rows:
        raise not_found(session, reference)
    ids = [row.id for row in rows]
    tags = _untag(session, ids)
    needed = _needed(session, [row.digest for row in rows])
    for batch in batched([row.id for row in rows if row.digest in needed]):
        buried = update(VersionRow).where(VersionRow.id.in_(batch))
        session.execute(buried.values(deleted=True, is_latest=False))
    for batch in batched([row.id for row in rows if row.digest not in needed]):
        session.execute(delete(VersionRow).where(VersionRow.id.in_(batch)))
    choose_latest(session, key_of(path))
    if not _lives(session, key_of(path)):
        forget(session, Kind.TASK_VECTOR, [key_of(path)])
    pairs = [((path, row.number), row.digest in needed) for row in reversed(rows)]
    return Deletion(
        tuple(pair for pair, stays in pairs if not stays),
        tuple(pair for pair, stays in pairs if stays),
        tags,
    )


def drop_tombstones(session: Session, digests: Sequence[str]) -> None:
    """Forget the tombstones among these digests that nothing refers to any more."""
    for batch in batched(digests):
        session.execute(
            delete(VersionRow).where(
                VersionRow.digest.in_(batch),
                VersionRow.deleted,
                *(VersionRow.digest.not_in(select(column)) for column in KEPT),
            )
        )


def _untag(session: Session, ids: Sequence[int]) -> tuple[str, ...]:
    tags: list[str] = []
    for batch in batched(ids):
        gone = delete(TagRow).where(TagRow.version_id.in_(batch)).returning(TagRow.tag)
        tags += session.scalars(gone)
    return tuple(sorted(tags))


def _needed(session: Session, digests: Sequence[str]) -> set[str]:
    """Those that saved loadouts and experiments refer to."""
    found: set[str] = set()
    for batch in batched(digests):
        for column in KEPT:
            found |= set(session.scalars(select(column).where(column.in_(batch))))
    return found


def choose_latest(session: Session, key: str) -> None:
    """Make the newest version that is not deleted the latest, and no other."""
    living = select(VersionRow.id).where(VersionRow.key == key, ~VersionRow.deleted)
    newest = session.scalar(living.order_by(VersionRow.number.desc()).limit(1))
    former = update(VersionRow).where(VersionRow.key == key, VersionRow.is_latest)
    session.execute(former.where(VersionRow.id != newest).values(is_latest=False))
    session.execute(update(VersionRow).where(VersionRow.id == newest).values(is_latest=True))


def name_row(session: Session, reference: Reference) -> NameRow:
    """The row of a name, made if it is new; raises CatalogConflict if it differs only in case."""
    path, namespace = path_of(reference), reference.namespace or ""
    key = key_of(path)
    row = session.get(NameRow, key)
    if row is not None and row.path == path:
        return row
    if row is not None and _lives(session, key):
        raise CatalogConflict(
            f"{path!r} differs from {row.path!r} only in case; use that name or another"
        )
    _check_namespace(session, namespace)
    if row is None:
        row = NameRow(key=key, namespace=key_of(namespace), path=path, next_version=1)
        session.add(row)
    row.path = path
    session.flush()
    return row


def _lives(session: Session, key: str) -> bool:
    query = select(VersionRow.id).where(VersionRow.key == key, VersionRow.is_latest)
    return session.scalar(query) is not None


def _check_namespace(session: Session, namespace: str) -> None:
    """All living names of a namespace spell it the same, so one of them tells."""
    path = session.scalar(
        select(NameRow.path)
        .join(VersionRow, VersionRow.key == NameRow.key)
        .where(NameRow.namespace == key_of(namespace), VersionRow.is_latest)
        .limit(1)
    )
    known = Reference.parse(path).namespace or "" if path else namespace
    if known != namespace:
        raise CatalogConflict(
            f"the namespace {namespace!r} differs from {known!r} only in case; use that or another"
        )
