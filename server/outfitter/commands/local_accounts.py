"""The database of a store as a place where commands find tenants, keys and rights."""

from collections.abc import Mapping, Sequence
from typing import Any

from outfitter.accounts import Accounts, By
from outfitter.control.limits import Limits
from outfitter.control.rights import Kind
from outfitter.routes.access import changed_access, describe_access
from outfitter.schemas import describe_key, describe_tenant
from outfitter.vectors import Vectors

PAGE = 1000


def local_accounts(vectors: Vectors) -> "_Local":
    """An `AccountPlace` that answers as a gateway on this store would; everything is allowed."""
    return _Local(vectors)


class _Local:
    """Its methods are those of `AccountPlace`."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors
        self._accounts = Accounts(vectors.catalog.database, vectors.resolver, Limits.parse)

    def create_tenant(self, name: str) -> dict[str, Any]:
        return describe_tenant(self._accounts.create_tenant(By(), name))

    def tenants(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while page := self._accounts.tenants(PAGE, found[-1]["id"] if found else None):
            found += [describe_tenant(tenant) for tenant in page]
        return found

    def tenant(self, name: str) -> dict[str, Any]:
        return describe_tenant(self._accounts.tenant(name))

    def set_disabled(self, name: str, is_disabled: bool) -> dict[str, Any]:
        return describe_tenant(self._accounts.set_disabled(By(), name, is_disabled))

    def delete_tenant(self, name: str) -> None:
        self._accounts.delete_tenant(By(), name)

    def set_namespace(self, name: str, namespace: str, is_added: bool) -> dict[str, Any]:
        accounts = self._accounts
        change = accounts.add_namespace if is_added else accounts.remove_namespace
        return describe_tenant(change(By(), name, namespace))

    def change_limits(self, name: str, changes: Mapping[str, object]) -> dict[str, Any]:
        return describe_tenant(self._accounts.change_limits(By(), name, changes))

    def create_key(self, tenant: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        scopes: Sequence[str] = fields["scopes"]
        key, text = self._accounts.create_key(
            By(), tenant, fields["name"], scopes, fields.get("expires_s")
        )
        return {**describe_key(key), "key": text}

    def keys(self, tenant: str) -> list[dict[str, Any]]:
        return [describe_key(key) for key in self._accounts.keys(tenant)]

    def revoke_key(self, tenant: str, id_: str) -> dict[str, Any]:
        return describe_key(self._accounts.revoke_key(By(), tenant, id_))

    def rotate_key(self, tenant: str, id_: str, grace_s: float) -> dict[str, Any]:
        key, text, old = self._accounts.rotate_key(By(), tenant, id_, grace_s)
        return {**describe_key(key), "key": text, "replaces": describe_key(old)}

    def access(self, kind: Kind, name: str) -> dict[str, Any]:
        owned = self._vectors.check_owned(kind, name)
        return describe_access(kind, owned, self._accounts.access(kind, owned))

    def set_access(self, kind: Kind, name: str, body: Mapping[str, object]) -> dict[str, Any]:
        owned = self._vectors.check_owned(kind, name)
        access = changed_access(self._accounts.access(kind, owned), body)
        return describe_access(kind, owned, self._accounts.set_access(By(), kind, owned, access))
