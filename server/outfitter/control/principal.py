"""Who asks: the tenant, its key, and what that key may do. Pure."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

OPEN_TENANT = "open"
"""The one tenant of a gateway without keys."""
LOCAL_TENANT = "local"
"""Whoever works on a store's database directly, with a command."""
AUTOMATIC_TENANT = "automatic"
"""What acts by itself, by figures."""


class Scope(StrEnum):
    """What a key may be used for. `admin` implies the others."""

    INFER = "infer"
    """Ask the models, list what may be used."""
    PUBLISH = "publish"
    """Publish, change and delete task vectors and saved loadouts of its tenant."""
    OPERATE = "operate"
    """See and steer the server: metrics, the store, promotions."""
    ADMIN = "admin"
    """Tenants, keys, rights, quotas."""


@dataclass(frozen=True)
class Principal:
    """On whose behalf a request is served.

    tenant: its name. key: the visible prefix of the key, None where none was needed. namespaces:
    those that the tenant owns, in lower case. limits: what the operator said of the tenant.
    cache_secret: of the tenant; keeps its prefix cache apart, empty where there is one tenant only.
    """

    tenant: str
    key: str | None
    scopes: frozenset[Scope]
    namespaces: frozenset[str] = frozenset()
    limits: Mapping[str, object] = field(default_factory=dict, repr=False, compare=False)
    cache_secret: bytes = field(default=b"", repr=False, compare=False)

    @property
    def counted_as(self) -> str:
        """Whose counts are its own: not those of another tenant of this name, since deleted."""
        if not self.cache_secret:
            return self.tenant
        return f"{self.tenant}:{hashlib.sha256(self.cache_secret).hexdigest()[:8]}"

    def may(self, scope: Scope) -> bool:
        """Whether the key has a scope."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    @classmethod
    def of(cls, tenant: str, key: str, scopes: Iterable[str]) -> "Principal":
        """The holder of a key; raises ValueError for a scope that does not exist."""
        return cls(tenant, key, frozenset(Scope(scope) for scope in scopes))


OPEN = Principal(OPEN_TENANT, None, frozenset(Scope))
"""Whoever reaches a gateway that asks for no keys: may do all."""
LOCAL = Principal(LOCAL_TENANT, None, frozenset(Scope))
"""Whoever can write to the store's database: may do all."""
AUTOMATIC = Principal(AUTOMATIC_TENANT, None, frozenset(Scope))
"""What an experiment does by itself, as its definition says."""
