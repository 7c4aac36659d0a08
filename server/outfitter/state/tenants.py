"""Rows of tenants and of their namespaces: made, looked up, changed, one transaction each."""

import json
import secrets
import time
from collections.abc import Mapping

from sqlalchemy import delete, select
from sqlalchemy.orm import Session, selectinload

from outfitter.errors import CatalogConflict, TenantNotFound
from outfitter.state.experiment_rows import ExperimentRow
from outfitter.state.grants import in_namespace
from outfitter.state.models import (
    KeyRow,
    LoadoutRow,
    NamespaceRow,
    ShareRow,
    TenantRow,
    VersionRow,
)
from outfitter.state.tenancy import Tenant

_WHOLE = selectinload(TenantRow.namespaces)


def create(session: Session, name: str) -> Tenant:
    """A tenant with the namespace of its own name. Raises CatalogConflict."""
    if session.get(TenantRow, name) is not None:
        raise CatalogConflict(f"the tenant {name!r} is there already")
    row = TenantRow(
        name=name,
        created=int(time.time()),
        disabled=False,
        limits="{}",
        cache_secret=secrets.token_hex(32),
    )
    session.add(row)
    session.flush()
    add_namespace(session, name, name)
    return find(session, name)


def find(session: Session, name: str) -> Tenant:
    """Raises TenantNotFound."""
    return record(find_row(session, name))


def find_row(session: Session, name: str) -> TenantRow:
    """Raises TenantNotFound."""
    query = select(TenantRow).where(TenantRow.name == name).options(_WHOLE)
    row = session.scalars(query.execution_options(populate_existing=True)).first()
    if row is None:
        raise TenantNotFound(f"no tenant {name[:200]!r}")
    return row


def page(session: Session, limit: int, after: str | None) -> tuple[Tenant, ...]:
    """Tenants by name, those behind `after`."""
    query = select(TenantRow).where(TenantRow.name > (after or "")).order_by(TenantRow.name)
    return tuple(record(row) for row in session.scalars(query.limit(limit).options(_WHOLE)))


def set_disabled(session: Session, name: str, is_disabled: bool) -> Tenant:
    """Raises TenantNotFound."""
    find_row(session, name).disabled = is_disabled
    session.flush()
    return find(session, name)


def set_limits(session: Session, name: str, limits: Mapping[str, object]) -> Tenant:
    """Raises TenantNotFound."""
    find_row(session, name).limits = json.dumps(dict(limits), sort_keys=True, allow_nan=False)
    session.flush()
    return find(session, name)


def add_namespace(session: Session, name: str, namespace: str) -> Tenant:
    """Give a namespace to a tenant. Raises TenantNotFound, CatalogConflict if it is another's."""
    find_row(session, name)
    row = session.get(NamespaceRow, namespace)
    if row is not None and row.tenant != name:
        raise CatalogConflict(f"the namespace {namespace!r} belongs to the tenant {row.tenant!r}")
    if row is None:
        session.add(NamespaceRow(name=namespace, tenant=name))
        session.flush()
    return find(session, name)


def remove_namespace(session: Session, name: str, namespace: str) -> Tenant:
    """What is in it stays, and is nobody's. Raises TenantNotFound, CatalogConflict."""
    row = session.get(NamespaceRow, namespace)
    if row is None or row.tenant != name:
        raise TenantNotFound(f"the tenant {name[:200]!r} has no namespace {namespace[:200]!r}")
    if namespace == name:
        raise CatalogConflict(f"a tenant keeps the namespace of its own name, {name!r}")
    session.delete(row)
    session.flush()
    return find(session, name)


def remove(session: Session, name: str) -> None:
    """Forget a tenant with its keys. Raises TenantNotFound, and CatalogConflict while it has names.

    So nobody who is called like it later inherits anything.
    """
    row = find_row(session, name)
    for namespace in row.namespaces:
        for table in (VersionRow, LoadoutRow, ExperimentRow):
            within = select(table.key).where(in_namespace(table.key, namespace.name))
            if (key := session.scalars(within.limit(1)).first()) is not None:
                raise CatalogConflict(f"the tenant {name!r} still has {key!r}; delete it first")
    for rows in (KeyRow.tenant, NamespaceRow.tenant, ShareRow.tenant):
        session.execute(delete(rows.class_).where(rows == name))
    session.execute(delete(TenantRow).where(TenantRow.name == name))


def owner_of(session: Session, namespace: str) -> Tenant | None:
    """Whose a namespace is; None if it is nobody's."""
    owns = TenantRow.name.in_(select(NamespaceRow.tenant).where(NamespaceRow.name == namespace))
    row = session.scalars(select(TenantRow).where(owns).options(_WHOLE)).first()
    return None if row is None else record(row)


def record(row: TenantRow) -> Tenant:
    """The row as a record."""
    namespaces = tuple(namespace.name for namespace in row.namespaces)
    return Tenant(row.name, row.created, row.disabled, namespaces, json.loads(row.limits))
