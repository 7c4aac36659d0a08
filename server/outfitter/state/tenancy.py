"""Tenants, keys and the trail, as plain values: what is asked and what is answered."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from outfitter.control.principal import AUTOMATIC_TENANT, LOCAL_TENANT, OPEN_TENANT, Scope
from outfitter.errors import InvalidTenant

RESERVED = (OPEN_TENANT, LOCAL_TENANT, AUTOMATIC_TENANT)
MAX_KEY_NAME = 128
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}")


@dataclass(frozen=True)
class Tenant:
    """An organisation. created: Unix time, seconds. limits: what quotas say of it, as JSON."""

    name: str
    created: int
    is_disabled: bool
    namespaces: tuple[str, ...]
    limits: Mapping[str, object]


@dataclass(frozen=True)
class Key:
    """An API key, without what only its holder has. Times: Unix, seconds; last_used: to the minute.

    id: `ofk_…`, the visible prefix.
    """

    id: str
    tenant: str
    name: str
    scopes: tuple[Scope, ...]
    created: int
    expires: int | None
    revoked: int | None
    last_used: int | None


@dataclass(frozen=True)
class Entry:
    """A change, and who made it. at: Unix time, seconds. key: None where none was needed."""

    at: int
    tenant: str
    key: str | None
    action: str
    subject: str
    request_id: str | None
    detail: Mapping[str, object]


@dataclass(frozen=True)
class Use:
    """How often a key used a loadout in an hour. Times: Unix, seconds."""

    hour: int
    tenant: str
    key: str | None
    loadout: str
    count: int
    first: int
    last: int


@dataclass(frozen=True)
class TrailQuery:
    """A page of the trail, the newest first. None asks for anything.

    subject: of changes. loadout: of uses. since, until: Unix time, seconds; until is left out.
    """

    tenant: str | None = None
    key: str | None = None
    action: str | None = None
    subject: str | None = None
    loadout: str | None = None
    since: int | None = None
    until: int | None = None
    limit: int = 100
    after: str | None = field(default=None)


def tenant_name(text: str) -> str:
    """`text`, if it can name a tenant or a namespace of one; raises InvalidTenant."""
    if not _NAME.fullmatch(text):
        raise InvalidTenant(
            f"invalid tenant {text[:200]!r}: use a lowercase letter or a digit, then up to 95"
            " lowercase letters, digits, '.', '_' and '-', such as acme"
        )
    if text in RESERVED:
        raise InvalidTenant(f"invalid tenant {text!r}: this name is reserved; use another")
    return text


def key_name(text: str) -> str:
    """`text`, if a key can be called so; raises InvalidTenant."""
    if not 1 <= len(text) <= MAX_KEY_NAME or not text.isprintable():
        raise InvalidTenant(
            f"invalid name {text[:80]!r} of a key: use 1 to {MAX_KEY_NAME} printable characters"
        )
    return text


def key_scopes(texts: tuple[str, ...]) -> tuple[Scope, ...]:
    """The scopes, each once and in order; raises InvalidTenant."""
    choices = ", ".join(Scope)
    for text in texts:
        if text not in list(Scope):
            raise InvalidTenant(f"unknown scope {text[:80]!r}; choose {choices}")
    if not texts:
        raise InvalidTenant(f"a key needs a scope; choose {choices}")
    return tuple(scope for scope in Scope if scope in texts)
