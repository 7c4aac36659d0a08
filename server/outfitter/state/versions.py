"""Rows of versions: found by reference, read as records, suggested when nothing is found."""

import difflib
from collections.abc import Iterable

from sqlalchemy import ColumnElement, Select, exists, or_, select
from sqlalchemy.orm import Session, defer, selectinload

from outfitter.control.rights import Kind, Viewer
from outfitter.state.bounds import searchable
from outfitter.state.grants import visible
from outfitter.state.kept import KEPT
from outfitter.state.models import (
    LabelRow,
    LanguageRow,
    NameRow,
    TagRow,
    VersionRow,
)
from outfitter.state.records import LATEST, Details, FileFacts, Version
from taskvectors.errors import InvalidReference, VectorNotFound
from taskvectors.spec import Reference

MAX_LOOKED_AT = 1000
"""A suggestion is looked for among so many names at most."""

_PARTS = (
    selectinload(VersionRow.labels),
    selectinload(VersionRow.languages),
    selectinload(VersionRow.tags),
)
WHOLE = (selectinload(VersionRow.name), *_PARTS)
LISTED = (*WHOLE, defer(VersionRow.card), defer(VersionRow.signature))
"""Without cards and signatures: a page would be as large as all of them."""


def key_of(path: str) -> str:
    """What a name is found by, in any case."""
    return path.lower()


def path_of(reference: Reference) -> str:
    """The reference's name; raises InvalidReference for a bare digest."""
    if reference.path is None:
        raise InvalidReference(f"{reference} is a digest, not a name")
    return reference.path


def parse_name(text: str) -> Reference:
    """A name without a version; raises InvalidReference."""
    reference = Reference.parse(text)
    if reference != Reference(reference.name, reference.namespace) or reference.name is None:
        raise InvalidReference(f"{text[:200]!r} is not a plain name; use name or namespace/name")
    return reference


def rows_of(reference: Reference) -> Select[VersionRow]:
    """The living versions that the reference names, newest first."""
    path = path_of(reference)
    query = (
        select(VersionRow)
        .join(VersionRow.name)
        .where(VersionRow.key == key_of(path), NameRow.path == path, ~VersionRow.deleted)
        .order_by(VersionRow.number.desc())
    )
    if reference.version is not None:
        query = query.where(VersionRow.number == reference.version)
    if reference.digest is not None:
        query = query.where(VersionRow.digest == reference.digest)
    if reference.tag == LATEST:
        query = query.where(VersionRow.is_latest)
    elif reference.tag is not None:
        tagged = select(TagRow.version_id).where(TagRow.key == key_of(path))
        query = query.where(VersionRow.id.in_(tagged.where(TagRow.tag == reference.tag)))
    return query


def find_row(
    session: Session, reference: Reference, viewer: Viewer | None = None, *, whole: bool = True
) -> VersionRow:
    """The version that a reference names, for whoever looks; raises VectorNotFound.

    A bare digest names the first version that has it, a tombstone if there is none other.
    """
    if reference.path is None:
        query = select(VersionRow).where(VersionRow.digest == reference.digest)
        query = query.order_by(VersionRow.deleted, VersionRow.id)
    else:
        query = rows_of(reference)
    options = WHOLE if whole else ()
    query = query.where(_seen_by(viewer))
    row = session.scalars(query.options(*options).limit(1)).first()
    if row is None:
        raise not_found(session, reference, viewer)
    return row


def record(row: VersionRow, *, listed: bool = False) -> Version:
    """The row as a record."""
    tags = [tag.tag for tag in row.tags]
    return Version(
        row.name.path,
        row.number,
        FileFacts(
            row.digest,
            row.size,
            row.base_name,
            row.base_fingerprint,
            row.parameters,
            row.nnz,
            row.numel,
            row.method,
        ),
        Details(
            row.license,
            tuple(language.text for language in row.languages),
            row.description,
            None if listed else row.card,
            tuple(label.text for label in row.labels),
        ),
        row.created,
        row.publisher,
        row.downloads,
        (LATEST, *tags) if row.is_latest else tuple(tags),
        None if listed else row.signature,
        row.deleted,
    )


def set_details(row: VersionRow, path: str, details: Details) -> None:
    """Give a row its details. path: of its name."""
    row.license, row.description, row.card = details.license, details.description, details.card
    row.labels = [LabelRow(position=i, text=text) for i, text in enumerate(details.labels)]
    row.languages = [LanguageRow(position=i, text=text) for i, text in enumerate(details.languages)]
    row.search = searchable(path, details)


def is_used(session: Session, digest: str) -> bool:
    """Whether a version, a tombstone, a saved loadout or an experiment names the file."""
    named = (exists().where(column == digest) for column in (VersionRow.digest, *KEPT))
    return bool(session.scalar(select(or_(*named))))


def not_found(
    session: Session, reference: Reference, viewer: Viewer | None = None
) -> VectorNotFound:
    """The error for a reference that names nothing; it suggests only from its namespace.

    It asks and tells the same whether there is nothing, or nothing that this tenant may see.
    """
    if reference.path is None:
        return VectorNotFound(f"no task vector {str(reference)!r}")
    bare = Reference(reference.name, reference.namespace)
    seen = rows_of(bare).where(_seen_by(viewer)).with_only_columns(VersionRow.number)
    numbers = session.scalars(seen.limit(5)).all()
    if numbers:
        known = ", ".join(f"@{number}" for number in reversed(numbers))
        return VectorNotFound(f"no task vector {str(reference)!r}; {bare.path!r} has {known}")
    close = [repr(path) for path in _close_to(session, bare, viewer)]
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return VectorNotFound(f"no task vector {str(reference)!r}{hint}")


def _seen_by(viewer: Viewer | None) -> ColumnElement[bool]:
    return visible(viewer, Kind.TASK_VECTOR, VersionRow.key)


def _close_to(session: Session, reference: Reference, viewer: Viewer | None) -> Iterable[str]:
    """Up to three names of the namespace, among those that sort next to this one."""
    path, namespace = path_of(reference), reference.namespace or ""
    key = key_of(path)
    living = (
        select(NameRow.path)
        .join(VersionRow, VersionRow.key == NameRow.key)
        .where(NameRow.namespace == namespace.lower(), VersionRow.is_latest, _seen_by(viewer))
        .limit(MAX_LOOKED_AT // 2)
    )
    after = living.where(NameRow.key >= key).order_by(NameRow.namespace, NameRow.key)
    before = living.where(NameRow.key < key).order_by(NameRow.namespace.desc(), NameRow.key.desc())
    paths = [*session.scalars(after), *session.scalars(before)]
    names = {
        key_of(found): found
        for found in paths
        if Reference.parse(found).namespace == reference.namespace
    }
    return [names[close] for close in difflib.get_close_matches(key, names, n=3)]
