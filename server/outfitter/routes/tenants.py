"""Tenants, their namespaces, limits and keys: for holders of a key with the scope `admin`."""

import asyncio
from collections.abc import Mapping

from fastapi import APIRouter, Request

from outfitter.control.resolve import parse_body
from outfitter.deps import ByDep, GatewayDep
from outfitter.errors import ApiError
from outfitter.routes.body import read_body
from outfitter.routes.documented import NAME, SECONDS, TEXTS, json_body
from outfitter.routes.task_vectors import limit_of
from outfitter.schemas import check_known, describe_key, describe_tenant, only, required
from taskvectors.values import kind_of

router = APIRouter(prefix="/v1/tenants")

MAX_BODY_BYTES = 2**16
_KEY = {"name": {"type": "string"}, "scopes": TEXTS, "expires_s": SECONDS}
DEFAULT_GRACE_S = 86_400.0
"""How long a key that is replaced lives on."""


@router.post("", status_code=201, openapi_extra=json_body({"name": NAME}, "name"))
async def create(request: Request, gateway: GatewayDep, by: ByDep) -> dict[str, object]:
    """A tenant, with the namespace of its own name."""
    body = await _body(request, "name")
    name = required(body, "name", str, '"acme"')
    return describe_tenant(await asyncio.to_thread(gateway.accounts.create_tenant, by, name))


@router.get("")
async def find(request: Request, gateway: GatewayDep) -> dict[str, object]:
    """A page of the tenants, by name."""
    params = request.query_params
    check_known(params.keys(), ("limit", "after"), "query parameter")
    limit, after = limit_of(only(params, "limit") or "100"), only(params, "after")
    found = await asyncio.to_thread(gateway.accounts.tenants, limit + 1, after)
    has_more = len(found) > limit
    data = [describe_tenant(tenant) for tenant in found[:limit]]
    after = found[limit - 1].name if has_more else None
    return {"object": "list", "data": data, "has_more": has_more, "after": after}


@router.get("/{tenant}")
async def get_one(tenant: str, gateway: GatewayDep) -> dict[str, object]:
    """One tenant."""
    return describe_tenant(await asyncio.to_thread(gateway.accounts.tenant, tenant))


@router.patch("/{tenant}", openapi_extra=json_body({"disabled": {"type": "boolean"}}, "disabled"))
async def update(
    tenant: str, request: Request, gateway: GatewayDep, by: ByDep
) -> dict[str, object]:
    """Let no key of a tenant in any more, or all again."""
    body = await _body(request, "disabled")
    disabled = required(body, "disabled", bool, "true")
    change = gateway.accounts.set_disabled
    return describe_tenant(await asyncio.to_thread(change, by, tenant, disabled))


@router.delete("/{tenant}")
async def delete(tenant: str, gateway: GatewayDep, by: ByDep) -> dict[str, object]:
    """Forget a tenant that has no names any more, with its keys."""
    await asyncio.to_thread(gateway.accounts.delete_tenant, by, tenant)
    return {"id": tenant, "object": "tenant", "deleted": True}


@router.put("/{tenant}/namespaces/{namespace}")
async def add_namespace(
    tenant: str, namespace: str, gateway: GatewayDep, by: ByDep
) -> dict[str, object]:
    """Give a namespace that is nobody's to a tenant."""
    change = gateway.accounts.add_namespace
    return describe_tenant(await asyncio.to_thread(change, by, tenant, namespace))


@router.delete("/{tenant}/namespaces/{namespace}")
async def remove_namespace(
    tenant: str, namespace: str, gateway: GatewayDep, by: ByDep
) -> dict[str, object]:
    """Take a namespace away from a tenant; what is in it stays, for admins only."""
    change = gateway.accounts.remove_namespace
    return describe_tenant(await asyncio.to_thread(change, by, tenant, namespace))


@router.get("/{tenant}/limits")
async def limits(tenant: str, gateway: GatewayDep) -> dict[str, object]:
    """The limits of a tenant."""
    found = await asyncio.to_thread(gateway.accounts.tenant, tenant)
    return {"object": "limits", "tenant": found.name, "limits": dict(found.limits)}


@router.patch("/{tenant}/limits", openapi_extra=json_body({}, extra=True))
async def change_limits(
    tenant: str, request: Request, gateway: GatewayDep, by: ByDep
) -> dict[str, object]:
    """Set some limits; null takes one away, and what is not given stays."""
    changes = parse_body(await read_body(request, MAX_BODY_BYTES))
    found = await asyncio.to_thread(gateway.accounts.change_limits, by, tenant, changes)
    return {"object": "limits", "tenant": found.name, "limits": dict(found.limits)}


@router.post("/{tenant}/keys", status_code=201, openapi_extra=json_body(_KEY, "name"))
async def create_key(
    tenant: str, request: Request, gateway: GatewayDep, by: ByDep
) -> dict[str, object]:
    """A key; its text is in this answer and nowhere else."""
    body = await _body(request, "name", "scopes", "expires_s")
    name, scopes = required(body, "name", str, '"production"'), _scopes(body)
    expires_s = None if body.get("expires_s") is None else _seconds(body, "expires_s", 0.0)
    create_ = gateway.accounts.create_key
    key, text = await asyncio.to_thread(create_, by, tenant, name, scopes, expires_s)
    return {**describe_key(key), "key": text}


@router.get("/{tenant}/keys")
async def find_keys(tenant: str, gateway: GatewayDep) -> dict[str, object]:
    """The keys of a tenant, also those that are over."""
    found = await asyncio.to_thread(gateway.accounts.keys, tenant)
    return {"object": "list", "data": [describe_key(key) for key in found], "has_more": False}


@router.post(
    "/{tenant}/keys/{key_id}/rotate",
    status_code=201,
    openapi_extra=json_body({"grace_s": SECONDS}),
)
async def rotate_key(
    tenant: str, key_id: str, request: Request, gateway: GatewayDep, by: ByDep
) -> dict[str, object]:
    """A new key like an old one, which lives on for `grace_s` seconds."""
    body = await _body(request, "grace_s")
    grace_s = _seconds(body, "grace_s", DEFAULT_GRACE_S)
    rotate = gateway.accounts.rotate_key
    key, text, old = await asyncio.to_thread(rotate, by, tenant, key_id, grace_s)
    return {**describe_key(key), "key": text, "replaces": describe_key(old)}


@router.delete("/{tenant}/keys/{key_id}")
async def revoke_key(tenant: str, key_id: str, gateway: GatewayDep, by: ByDep) -> dict[str, object]:
    """End a key now."""
    return describe_key(await asyncio.to_thread(gateway.accounts.revoke_key, by, tenant, key_id))


async def _body(request: Request, *fields: str) -> dict[str, object]:
    """The body, empty for none; raises ApiError (400) for a field that nobody would read."""
    raw = await read_body(request, MAX_BODY_BYTES)
    body = parse_body(raw) if raw else {}
    check_known(body, fields)
    return body


def _scopes(body: Mapping[str, object]) -> list[str]:
    scopes = body.get("scopes", ["infer"])
    if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
        message = f'scopes must be a list, such as ["infer", "publish"], not {kind_of(scopes)}'
        raise ApiError(400, message, "invalid_parameter", "scopes")
    return scopes


def _seconds(body: Mapping[str, object], name: str, default: float) -> float:
    value = body.get(name, default)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= float(str(value)) < 1e12:
        message = f"{name} must be seconds, 0 or more, not {str(value)[:80]!r}"
        raise ApiError(400, message, "invalid_parameter", name)
    return float(str(value))
