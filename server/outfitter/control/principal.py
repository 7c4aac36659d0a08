"""Who asks: the tenant, its key, and what that key may do. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

OPEN_TENANT = "open"
"""The one tenant of a gateway without keys."""


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

    tenant: its name. key: the visible prefix of the key, None where none was needed.
    """

    tenant: str
    key: str | None
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        """Whether the key has a scope."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    @classmethod
    def of(cls, tenant: str, key: str, scopes: Iterable[str]) -> "Principal":
        """The holder of a key; raises ValueError for a scope that does not exist."""
        return cls(tenant, key, frozenset(Scope(scope) for scope in scopes))


OPEN = Principal(OPEN_TENANT, None, frozenset(Scope))
"""Whoever reaches a gateway that asks for no keys: may do all."""
