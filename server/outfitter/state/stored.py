"""How many bytes the versions of some namespaces hold."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, func, select, true
from sqlalchemy.orm import Session

from outfitter.control.storage import Stored
from outfitter.state.models import NameRow, VersionRow
from outfitter.state.versions import key_of


def stored(session: Session, namespaces: Sequence[str] | None, digest: str | None) -> Stored:
    """Of all namespaces when None. Tombstones count: their files are kept for saved loadouts."""
    where = _within(namespaces)
    joined = select(VersionRow.digest, VersionRow.size).join(NameRow, NameRow.key == VersionRow.key)
    files = joined.where(where).distinct().subquery()
    nbytes = session.scalar(select(func.coalesce(func.sum(files.c.size), 0))) or 0
    mine = joined.where(where, VersionRow.digest == digest).limit(1)
    has_file = digest is not None and session.execute(mine).first() is not None
    largest = session.execute(
        select(NameRow.path, VersionRow.number, VersionRow.size)
        .join(NameRow, NameRow.key == VersionRow.key)
        .where(where, ~VersionRow.deleted)
        .order_by(VersionRow.size.desc(), VersionRow.id)
        .limit(1)
    ).first()
    told = None if largest is None else (f"{largest.path}@{largest.number}", int(largest.size))
    return Stored(int(nbytes), has_file, told)


def _within(namespaces: Sequence[str] | None) -> ColumnElement[bool]:
    if namespaces is None:
        return true()
    return NameRow.namespace.in_([key_of(namespace) for namespace in namespaces])
