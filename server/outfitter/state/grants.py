"""Rights as the database keeps them, and as a condition of every query on names.

The condition says what `control.rights.may_see` says; a test holds one against the other.
"""

from collections.abc import Iterable

from sqlalchemy import ColumnElement, delete, exists, or_, select, true
from sqlalchemy.orm import InstrumentedAttribute, Session

from outfitter.control.rights import Access, Kind, Viewer, Visibility
from outfitter.state.models import GrantRow, ShareRow

Key = InstrumentedAttribute[str]


def visible(viewer: Viewer | None, kind: Kind, key: Key) -> ColumnElement[bool]:
    """Whether a tenant may see the name in the column `key`; it is in lower case."""
    if viewer is None:
        return true()
    shared = exists().where(
        ShareRow.kind == kind, ShareRow.key == key, ShareRow.tenant == viewer.tenant
    )
    library = key.not_like("%/%") & ~_granted(kind, key, Visibility.PRIVATE)
    own = (in_namespace(key, namespace) for namespace in sorted(viewer.namespaces))
    return or_(library, _granted(kind, key, Visibility.PUBLIC), shared, *own)


def in_namespace(key: Key, namespace: str) -> ColumnElement[bool]:
    """As a range of keys, which an index has in order. `0` comes after `/`."""
    if not namespace:
        return key.not_like("%/%")
    return (key >= f"{namespace}/") & (key < f"{namespace}0")


def access_of(session: Session, kind: Kind, key: str) -> Access:
    """Who may see a name; the default until somebody says otherwise."""
    row = session.get(GrantRow, (kind, key))
    shares = select(ShareRow.tenant).where(ShareRow.kind == kind, ShareRow.key == key)
    visibility = Access.default(key).visibility if row is None else Visibility(row.visibility)
    return Access(visibility, frozenset(session.scalars(shares)))


def set_access(session: Session, kind: Kind, key: str, access: Access) -> None:
    """Say who may see a name, instead of what was said before."""
    forget(session, kind, [key])
    session.add(GrantRow(kind=str(kind), key=key, visibility=str(access.visibility)))
    session.add_all(
        ShareRow(kind=str(kind), key=key, tenant=tenant) for tenant in sorted(access.shared_with)
    )
    session.flush()


def forget(session: Session, kind: Kind, keys: Iterable[str]) -> None:
    """Back to the default: a name that is published anew shall not inherit what was shared."""
    for key in keys:
        for table in (GrantRow, ShareRow):
            session.execute(delete(table).where(table.kind == kind, table.key == key))


def _granted(kind: Kind, key: Key, visibility: Visibility) -> ColumnElement[bool]:
    return exists().where(
        GrantRow.kind == kind, GrantRow.key == key, GrantRow.visibility == visibility
    )
