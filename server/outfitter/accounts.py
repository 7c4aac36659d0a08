"""Tenants, their keys and rights, and the trail of who did what, on the catalog's database."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy.orm import Session

from outfitter.control.keys import Holder
from outfitter.control.principal import LOCAL, Principal
from outfitter.control.rights import Access, Kind, Viewer
from outfitter.errors import CatalogUnavailable, InvalidTenant
from outfitter.state import audit, grants, keys, tenants
from outfitter.state.database import Database
from outfitter.state.keyring import Keyring
from outfitter.state.resolver import Resolver
from outfitter.state.tenancy import (
    Entry,
    Key,
    Tenant,
    TrailQuery,
    Use,
    key_name,
    key_scopes,
    tenant_name,
)
from outfitter.state.trail import Trail
from outfitter.state.uses import UseLog
from outfitter.state.versions import key_of
from outfitter.vectors import Draft
from taskvectors.errors import InvalidReference
from taskvectors.spec import Reference

MAX_LIMITS = 16_384
"""Characters of a tenant's limits, as JSON."""
MAX_TENANTS = 1000
MAX_SHARES = 256
MAX_LIFETIME_S = 100 * 366 * 86_400

CheckLimits = Callable[[Mapping[str, object]], object]
"""Raises TaskVectorError or ApiError for limits that cannot be."""


@dataclass(frozen=True)
class By:
    """Who makes a change, and with which request."""

    principal: Principal = LOCAL
    request_id: str | None = None

    @property
    def publisher(self) -> str | None:
        """Who is said to have published; None where there is one tenant only."""
        return self.principal.tenant if self.principal.key is not None else None

    def signing(self, draft: Draft) -> Draft:
        """`draft` with its publisher."""
        return replace(draft, publisher=self.publisher)


class Accounts:
    """Every method but `keyring`'s and `uses`' own may block, and may raise CatalogUnavailable.

    Changes are written down in the transaction that makes them. check_limits: what a tenant's
    limits must be.
    """

    def __init__(
        self,
        database: Database,
        resolver: Resolver,
        check_limits: CheckLimits = lambda limits: None,  # noqa: ARG005
    ) -> None:
        self._database = database
        self._resolver = resolver
        self._check_limits = check_limits
        self._owners: dict[str, tuple[int, Viewer | None]] = {}
        self.keyring = Keyring(self._holder, resolver.generation)
        self.uses = UseLog()
        self._trail = Trail(database, self.uses, self.keyring)

    def create_tenant(self, by: By, name: str) -> Tenant:
        """A tenant with the namespace of its own name. Raises InvalidTenant, CatalogConflict."""
        return self._change_tenant(by, "tenant.create", tenant_name(name), tenants.create)

    def tenant(self, name: str) -> Tenant:
        """Raises TenantNotFound."""
        with self._database.reading() as session:
            return tenants.find(session, name)

    def tenants(self, limit: int = 100, after: str | None = None) -> tuple[Tenant, ...]:
        """Tenants by name, those behind `after`."""
        with self._database.reading() as session:
            return tenants.page(session, limit, after)

    def set_disabled(self, by: By, name: str, is_disabled: bool) -> Tenant:
        """Let no key of a tenant in, or all again. Raises TenantNotFound."""
        action = "tenant.disable" if is_disabled else "tenant.enable"
        return self._change_tenant(
            by, action, name, lambda session, who: tenants.set_disabled(session, who, is_disabled)
        )

    def delete_tenant(self, by: By, name: str) -> None:
        """Forget a tenant and its keys. Raises TenantNotFound; CatalogConflict if it has names."""
        with self._database.writing() as session:
            tenants.remove(session, name)
            self._record(session, by, "tenant.delete", name)
        self.keyring.forget_tenant(name)
        self._resolver.changed()

    def add_namespace(self, by: By, name: str, namespace: str) -> Tenant:
        """Raises InvalidTenant, TenantNotFound, CatalogConflict."""
        wanted = tenant_name(namespace)
        detail = {"namespace": wanted}
        return self._change_tenant(
            by,
            "namespace.add",
            name,
            lambda session, who: tenants.add_namespace(session, who, wanted),
            detail,
        )

    def remove_namespace(self, by: By, name: str, namespace: str) -> Tenant:
        """Raises TenantNotFound, CatalogConflict."""
        return self._change_tenant(
            by,
            "namespace.remove",
            name,
            lambda session, who: tenants.remove_namespace(session, who, namespace),
            {"namespace": namespace},
        )

    def change_limits(self, by: By, name: str, changes: Mapping[str, object]) -> Tenant:
        """Set some limits of a tenant; null takes one away.

        Raises TenantNotFound, InvalidTenant, and what `check_limits` raises.
        """

        def change(session: Session, who: str) -> Tenant:
            known = tenants.find(session, who).limits
            merged = {**known, **changes}
            limits = {key: value for key, value in merged.items() if value is not None}
            if len(json.dumps(limits)) > MAX_LIMITS:
                raise InvalidTenant(f"the limits have more than {MAX_LIMITS} characters")
            self._check_limits(limits)
            return tenants.set_limits(session, who, limits)

        return self._change_tenant(by, "tenant.limits", name, change, dict(changes))

    def create_key(
        self,
        by: By,
        tenant: str,
        name: str,
        scopes: Sequence[str],
        expires_s: float | None = None,
    ) -> tuple[Key, str]:
        """A key, and its text, which nobody can see again. Raises InvalidTenant, TenantNotFound."""
        given, named = key_scopes(tuple(scopes)), key_name(name)
        expires = None if expires_s is None else int(time.time() + _lifetime(expires_s))
        with self._database.writing() as session:
            key, token = keys.create(session, tenant, named, given, expires)
            detail = {"name": named, "scopes": list(given), "expires": expires}
            self._record(session, by, "key.create", key.id, {"tenant": tenant, **detail})
        self._resolver.changed()
        return key, token.text

    def keys(self, tenant: str) -> tuple[Key, ...]:
        """All keys of a tenant, also those that are over. Raises TenantNotFound."""
        with self._database.reading() as session:
            return keys.page(session, tenant)

    def revoke_key(self, by: By, tenant: str, id_: str) -> Key:
        """End a key: here at once, on other replicas within a second. Raises TenantNotFound."""
        with self._database.writing() as session:
            key = keys.revoke(session, tenant, id_)
            self._record(session, by, "key.revoke", id_, {"tenant": tenant})
        self.keyring.forget(id_)
        self._resolver.changed()
        return key

    def rotate_key(self, by: By, tenant: str, id_: str, grace_s: float) -> tuple[Key, str, Key]:
        """A new key like an old one, its text, and the old one, which ends after `grace_s`.

        Raises InvalidTenant, TenantNotFound, CatalogConflict.
        """
        grace = int(_lifetime(grace_s))
        with self._database.writing() as session:
            key, token, old = keys.rotate(session, tenant, id_, grace)
            detail = {"tenant": tenant, "new": key.id, "grace_s": grace}
            self._record(session, by, "key.rotate", id_, detail)
        self.keyring.forget(id_)
        self._resolver.changed()
        return key, token.text, old

    def access(self, kind: Kind, path: str) -> Access:
        """Who may see a name beside its owner."""
        with self._database.reading() as session:
            return grants.access_of(session, kind, key_of(path))

    def set_access(self, by: By, kind: Kind, path: str, access: Access) -> Access:
        """Say so, instead of what was said before. Raises InvalidTenant."""
        for tenant in access.shared_with:
            tenant_name(tenant)
        if len(access.shared_with) > MAX_SHARES:
            raise InvalidTenant(f"a name is shared with at most {MAX_SHARES} tenants")
        detail = {"visibility": access.visibility, "shared_with": sorted(access.shared_with)}
        with self._database.writing() as session:
            grants.set_access(session, kind, key_of(path), access)
            self._record(session, by, f"{kind}.access", path, detail)
        self._resolver.changed()
        return access

    def note(
        self, by: By, action: str, subject: str, detail: Mapping[str, object] | None = None
    ) -> None:
        """Write down a change that was made elsewhere."""
        with self._database.changing() as session:
            self._record(session, by, action, subject, detail)

    def changes(self, query: TrailQuery) -> tuple[tuple[Entry, ...], str | None]:
        """A page of changes, the newest first. Raises InvalidDetails."""
        with self._database.reading() as session:
            return audit.changes(session, query)

    def used_loadouts(self, query: TrailQuery) -> tuple[tuple[Use, ...], str | None]:
        """A page of which key used which loadout, the newest hours first. Raises InvalidDetails."""
        with self._database.reading() as session:
            return audit.uses(session, query)

    def owner_of(self, path: str) -> Viewer | None:
        """By whose rights a saved loadout is made up; None for the operator's."""
        try:
            namespace = (Reference.parse(path).namespace or "").lower()
        except InvalidReference:
            namespace = ""
        if not namespace:
            return None
        known = self._owners.get(namespace)
        try:
            generation = self._resolver.generation.current()
        except CatalogUnavailable:
            if known is None:
                raise
            return known[1]  # its vectors are looked up with as little
        if known is not None and known[0] == generation:
            return known[1]
        with self._database.reading() as session:
            tenant = tenants.owner_of(session, namespace)
        owner = None if tenant is None else Viewer(tenant.name, frozenset(tenant.namespaces))
        if len(self._owners) >= MAX_TENANTS:
            self._owners.clear()
        self._owners[namespace] = (generation, owner)
        return owner

    def flush(self) -> None:
        """Write down what was counted; what cannot be written now is tried again later."""
        self._trail.flush()

    def _holder(self, id_: str) -> Holder | None:
        with self._database.reading() as session:
            return keys.holder(session, id_)

    def _change_tenant(
        self,
        by: By,
        action: str,
        name: str,
        change: Callable[[Session, str], Tenant],
        detail: Mapping[str, object] | None = None,
    ) -> Tenant:
        with self._database.writing() as session:
            tenant = change(session, name)
            self._record(session, by, action, name, detail)
        self.keyring.forget_tenant(name)
        self._resolver.changed()
        return tenant

    def _record(
        self,
        session: Session,
        by: By,
        action: str,
        subject: str,
        detail: Mapping[str, object] | None = None,
    ) -> None:
        audit.record(session, by.principal, action, subject, by.request_id, detail)


def _lifetime(seconds: float) -> float:
    if not 0 <= seconds <= MAX_LIFETIME_S:
        raise InvalidTenant(f"unsupported lifetime {seconds:g} s; use 0 to {MAX_LIFETIME_S}")
    return seconds
