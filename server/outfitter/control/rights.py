"""Who may see, use, publish, change and delete which name. Pure.

What may be seen may be used. The database answers the same questions by the same rules
(`state/grants.py`), so that what a tenant may not see is not even found.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from outfitter.control.principal import Principal, Scope
from outfitter.errors import ApiError, NotYours


class Kind(StrEnum):
    """What a name is a name of."""

    TASK_VECTOR = "task_vector"
    LOADOUT = "loadout"
    EXPERIMENT = "experiment"


class Visibility(StrEnum):
    """Who finds a name, beside its owner and those that it is shared with."""

    PRIVATE = "private"
    PUBLIC = "public"


@dataclass(frozen=True)
class Viewer:
    """A tenant as rights know it. namespaces: those that it owns, in lower case."""

    tenant: str
    namespaces: frozenset[str] = frozenset()

    def owns(self, path: str) -> bool:
        """Whether a name is in one of its namespaces, in any case; nobody owns a bare name."""
        return namespace_of(path) in self.namespaces


@dataclass(frozen=True)
class Access:
    """Who may see a name beside its owner. shared_with: names of tenants."""

    visibility: Visibility
    shared_with: frozenset[str] = frozenset()

    @classmethod
    def default(cls, path: str) -> "Access":
        """Before anybody says otherwise: names without a namespace are the shared library."""
        return cls(Visibility.PRIVATE if namespace_of(path) else Visibility.PUBLIC)


def viewer_of(principal: Principal) -> Viewer | None:
    """The one whom rights bind; None for whoever may see and change everything."""
    if principal.may(Scope.ADMIN):
        return None
    return Viewer(principal.tenant, principal.namespaces)


def namespace_of(path: str) -> str:
    """In lower case; empty for a bare name."""
    return path.rpartition("/")[0].lower()


def may_see(viewer: Viewer | None, path: str, access: Access) -> bool:
    """Whether a name exists for this tenant."""
    if viewer is None or viewer.owns(path) or access.visibility is Visibility.PUBLIC:
        return True
    return viewer.tenant in access.shared_with


def may_change(viewer: Viewer | None, path: str) -> bool:
    """Whether versions of a name may be published, changed, tagged, shared and deleted."""
    return viewer is None or viewer.owns(path)


def check_change(viewer: Viewer | None, path: str) -> None:
    """Raise NotYours unless `may_change`; the message tells only of the own namespaces."""
    if viewer is None or viewer.owns(path):
        return
    own = ", ".join(f"{name}/…" for name in sorted(viewer.namespaces)) or "nothing"
    raise NotYours(
        f"{path[:200]!r} is not in a namespace of the tenant {viewer.tenant!r}, whose keys may"
        f" publish and change {own}"
    )


def check_scope(principal: Principal, scopes: Iterable[Scope]) -> None:
    """Raise ApiError (403) unless the key has one of the scopes; the first is the one to ask for.

    Without any scope everybody may.
    """
    wanted = tuple(scopes)
    if not wanted or any(principal.may(scope) for scope in wanted):
        return
    has = ", ".join(sorted(principal.scopes)) or "none"
    message = f"this key lacks the scope {str(wanted[0])!r}; it has {has}"
    header = f'Bearer error="insufficient_scope", scope="{wanted[0]}"'
    raise ApiError(
        403,
        message,
        "insufficient_scope",
        headers={"www-authenticate": header},
    )
