"""The objects of the gateway's own routes: what is answered, and what a client may send."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from starlette.datastructures import QueryParams

from outfitter.errors import ApiError
from outfitter.state.records import Deletion, Details, SavedLoadout, Version
from outfitter.state.tenancy import Key, Tenant
from outfitter.vectors import Draft
from taskvectors.values import kind_of

DETAILS = tuple(item.name for item in fields(Details))
DRAFT = ("name", "tags", *DETAILS, "signature")
_LISTS = ("tags", "languages", "labels")
_QUERY_NAMES = {"tag": "tags", "language": "languages", "label": "labels"}
_QUERY_TEXTS = ("name", "license", "description")

T = TypeVar("T")


def describe(version: Version) -> dict[str, object]:
    """A task vector, as the API shows it; its card and signature have routes of their own."""
    has = {"has_card": version.details.card is not None, "is_signed": version.signature is not None}
    return {**describe_row(version), **has}


def describe_row(version: Version) -> dict[str, object]:
    """The same in a listing, which knows no cards and signatures."""
    facts, details = version.facts, version.details
    return {
        "id": f"sha256:{version.digest}",
        "object": "task_vector",
        "name": version.name,
        "version": version.version,
        "digest": f"sha256:{version.digest}",
        "tags": list(version.tags),
        "bytes": facts.size,
        "base": {"name": facts.base_name, "fingerprint": facts.base_fingerprint},
        "parameters": facts.parameters,
        "nnz": facts.nnz,
        "density": facts.density,
        "method": facts.method,
        "license": details.license,
        "languages": list(details.languages),
        "description": details.description,
        "labels": list(details.labels),
        "publisher": version.publisher,
        "downloads": version.downloads,
        "deleted": version.deleted,
        "created_at": version.created,
    }


def describe_deletion(reference: str, deletion: Deletion) -> dict[str, object]:
    """What is gone, and what only saved loadouts still reach."""
    gone, kept = (
        [f"{name}@{version}" for name, version in pairs]
        for pairs in (deletion.deleted, deletion.tombstones)
    )
    fields = {"id": reference, "object": "task_vector", "deleted": True}
    return {**fields, "versions": gone, "tombstones": kept}


def describe_loadout(saved: SavedLoadout) -> dict[str, object]:
    """A saved loadout: what was asked for, and what it was resolved to."""
    return {
        "id": f"{saved.name}@{saved.version}",
        "object": "loadout",
        "name": saved.name,
        "version": saved.version,
        "digest": f"sha256:{saved.digest}",
        "task_vectors": saved.request,
        "resolved": json.loads(saved.canonical),
        "request_vectors": saved.terms.request_vectors,
        "description": saved.terms.description,
        "base_fingerprint": saved.terms.base_fingerprint,
        "publisher": saved.publisher,
        "created_at": saved.created,
    }


def describe_tenant(tenant: Tenant) -> dict[str, object]:
    """A tenant, as admins see it."""
    return {
        "id": tenant.name,
        "object": "tenant",
        "namespaces": list(tenant.namespaces),
        "disabled": tenant.is_disabled,
        "limits": dict(tenant.limits),
        "created_at": tenant.created,
    }


def describe_key(key: Key) -> dict[str, object]:
    """A key without what only its holder has."""
    return {
        "id": key.id,
        "object": "key",
        "tenant": key.tenant,
        "name": key.name,
        "scopes": [str(scope) for scope in key.scopes],
        "created_at": key.created,
        "expires_at": key.expires,
        "revoked_at": key.revoked,
        "last_used_at": key.last_used,
    }


def check_known(given: Collection[str], known: Sequence[str], what: str = "field") -> None:
    """Raise ApiError (400) for what nobody would read."""
    if unknown := sorted(set(given) - set(known)):
        message = f"unknown {what} {unknown[0][:200]!r}; choose {', '.join(known)}"
        raise ApiError(400, message, "unknown_parameter", unknown[0][:200])


def required(body: Mapping[str, object], name: str, kind: type[T], example: str) -> T:
    """A field that must be there, of this very type; raises ApiError (400)."""
    value = body.get(name)
    if type(value) is not kind:
        message = f"{name} is required, such as {example}"
        if value is not None:
            message = f"{name} must be like {example}, not {kind_of(value)}"
        raise ApiError(
            400, message, "missing_name" if name == "name" else "invalid_parameter", name
        )
    return value


def optional(body: Mapping[str, object], name: str) -> str | None:
    """A text that may be absent or null; raises ApiError (400)."""
    value = body.get(name)
    if not isinstance(value, str | None):
        raise _wrong(name, "a string", value)
    return value


def draft_of(body: Mapping[str, object], *more: str) -> Draft:
    """What a client says of the file that it publishes; `more` fields are known, but not read.

    Raises ApiError (400). Whether the values are right is for `Vectors.publish` to say.
    """
    check_known(body, (*DRAFT, *more))
    name = required(body, "name", str, '"acme/legal"')
    signature = body.get("signature")
    if isinstance(signature, Mapping):
        signature = json.dumps(signature)
    if not isinstance(signature, str | None):
        raise _wrong("signature", "a signature's JSON", signature)
    tags = _texts(body, "tags")
    details = changed_details(Details(), {k: v for k, v in body.items() if k in DETAILS})
    return Draft(name, details, tags, signature=signature)


def draft_of_query(params: QueryParams) -> Draft:
    """The same from a query: `?name=acme/legal&tag=stable&tag=v2&license=MIT`."""
    check_known(params.keys(), (*_QUERY_TEXTS, *_QUERY_NAMES), "query parameter")
    if not params.get("name"):
        message = "name is required: POST /v1/task_vectors?name=<name>"
        raise ApiError(400, message, "missing_name", "name")
    texts = {key: only(params, key) for key in _QUERY_TEXTS if key in params}
    lists = {name: params.getlist(key) for key, name in _QUERY_NAMES.items() if key in params}
    return draft_of({**texts, **lists})


def changed_details(details: Details, changes: Mapping[str, object]) -> Details:
    """`details` with what the body of a PATCH gives; null takes away. Raises ApiError (400)."""
    check_known(changes, DETAILS)
    given: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in _LISTS and not isinstance(value, str | None):
            raise _wrong(name, "a string", value)
        given[name] = _texts(changes, name) if name in _LISTS else value
    return replace(details, **given)


def only(params: QueryParams, key: str) -> str | None:
    """The one value of a query parameter, None without it; raises ApiError (400) for two."""
    values = params.getlist(key)
    if len(values) > 1:
        raise ApiError(400, f"{key} is given {len(values)} times", "invalid_parameter", key)
    return values[0] if values else None


def _texts(body: Mapping[str, object], name: str) -> tuple[str, ...]:
    value = body.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise _wrong(name, "a list of strings", value)
    return tuple(value)


def _wrong(name: str, right: str, value: object) -> ApiError:
    message = f"{name} must be {right}, not {kind_of(value)}"
    return ApiError(400, message, "invalid_parameter", name)
