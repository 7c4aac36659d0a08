"""Rows of API keys: made, looked up, revoked, replaced; a secret is never in one of them."""

import json
import time
from collections.abc import Sequence

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session, selectinload

from outfitter.control.keys import Holder, Token
from outfitter.control.principal import Scope
from outfitter.errors import CatalogConflict, TenantNotFound
from outfitter.state.models import KeyRow, TenantRow
from outfitter.state.tenancy import Key
from outfitter.state.tenants import find_row as find_tenant


def create(
    session: Session, tenant: str, name: str, scopes: Sequence[Scope], expires: int | None
) -> tuple[Key, Token]:
    """A key of a tenant, and what is shown of it once. Raises TenantNotFound."""
    find_tenant(session, tenant)
    token = Token.new()
    row = KeyRow(
        id=token.id,
        tenant=tenant,
        name=name,
        hash=token.hash,
        scopes=" ".join(scopes),
        created=int(time.time()),
        expires=expires,
    )
    session.add(row)
    session.flush()
    return record(row), token


def page(session: Session, tenant: str) -> tuple[Key, ...]:
    """All keys of a tenant, also those that were revoked, by age. Raises TenantNotFound."""
    find_tenant(session, tenant)
    query = select(KeyRow).where(KeyRow.tenant == tenant).order_by(KeyRow.created, KeyRow.id)
    return tuple(record(row) for row in session.scalars(query))


def revoke(session: Session, tenant: str, id_: str) -> Key:
    """End a key at once; one that was revoked before stays so. Raises TenantNotFound."""
    row = _find(session, tenant, id_)
    row.revoked = row.revoked or int(time.time())
    session.flush()
    return record(row)


def rotate(session: Session, tenant: str, id_: str, grace_s: int) -> tuple[Key, Token, Key]:
    """A new key like an old one, which lives on for `grace_s` seconds; both, as they are now.

    The new one lives as long as the old one was meant to. Raises TenantNotFound, CatalogConflict
    for a key that is over.
    """
    old, now = _find(session, tenant, id_), int(time.time())
    if old.revoked is not None or (old.expires is not None and old.expires <= now):
        raise CatalogConflict(f"the key {id_} is over; create a new one")
    lifetime = None if old.expires is None else old.expires - old.created
    scopes = [Scope(scope) for scope in old.scopes.split()]
    expires = None if lifetime is None else now + lifetime
    key, token = create(session, tenant, old.name, scopes, expires)
    end = now + grace_s
    old.expires = end if old.expires is None else min(old.expires, end)
    session.flush()
    return key, token, record(old)


def holder(session: Session, id_: str) -> Holder | None:
    """A key with its tenant; None if nobody has it."""
    query = (
        select(KeyRow, TenantRow)
        .join(TenantRow, TenantRow.name == KeyRow.tenant)
        .where(KeyRow.id == id_)
        .options(selectinload(TenantRow.namespaces))
    )
    found = session.execute(query).first()
    if found is None:
        return None
    key, tenant = found
    return Holder(
        key.id,
        key.hash,
        tenant.name,
        frozenset(Scope(scope) for scope in key.scopes.split()),
        frozenset(namespace.name for namespace in tenant.namespaces),
        key.expires,
        key.revoked,
        tenant.disabled,
        json.loads(tenant.limits),
        bytes.fromhex(tenant.cache_secret),
    )


def used(session: Session, id_: str, at: int) -> None:
    """Note when a key was used, unless a later use is noted."""
    older = or_(KeyRow.last_used.is_(None), KeyRow.last_used < at)
    session.execute(update(KeyRow).where(KeyRow.id == id_, older).values(last_used=at))


def record(row: KeyRow) -> Key:
    """The row as a record."""
    scopes = tuple(Scope(scope) for scope in row.scopes.split())
    times = (row.created, row.expires, row.revoked, row.last_used)
    return Key(row.id, row.tenant, row.name, scopes, *times)


def _find(session: Session, tenant: str, id_: str) -> KeyRow:
    row = session.get(KeyRow, id_)
    if row is None or row.tenant != tenant:
        raise TenantNotFound(f"the tenant {tenant[:200]!r} has no key {id_[:80]!r}")
    return row
