"""Who may see a task vector, a saved loadout or an experiment: said by its owner, name by name.

`GET` may be read in two ways, as in downloads: if there is no `a`, `a/access` is a vector.
"""

import asyncio
from collections.abc import Mapping

from fastapi import APIRouter, Request

from outfitter.control.resolve import parse_body
from outfitter.control.rights import Access, Kind, Visibility
from outfitter.deps import ByDep, GatewayDep, VectorsDep
from outfitter.errors import ApiError
from outfitter.gateway import Gateway
from outfitter.routes.body import read_body
from outfitter.routes.documented import ACCESS, json_body
from outfitter.schemas import check_known, describe, describe_loadout
from outfitter.vectors import Vectors
from taskvectors.errors import VectorNotFound
from taskvectors.spec import Reference
from taskvectors.values import kind_of

router = APIRouter(prefix="/v1")

MAX_BODY_BYTES = 2**16
_FIELDS = ("visibility", "shared_with")


def _add(kind: Kind, names: str, what: str) -> None:
    """The two routes of one kind of names."""
    path = f"/{names}/{{name:path}}/access"

    @router.get(path, description=f"Who may see and use {what}, for its owner.")
    async def access(name: str, gateway: GatewayDep, vectors: VectorsDep) -> dict[str, object]:
        return await _get(gateway, vectors, kind, name)

    told = f"Say who may see and use {what}; a field that is not given stays."

    @router.put(path, description=told, openapi_extra=json_body(ACCESS))
    async def set_access(
        name: str, request: Request, gateway: GatewayDep, vectors: VectorsDep, by: ByDep
    ) -> dict[str, object]:
        return await _put(request, gateway, vectors, by, kind, name)


for _kind, _names, _what in (
    (Kind.TASK_VECTOR, "task_vectors", "a task vector"),
    (Kind.LOADOUT, "loadouts", "a saved loadout"),
    (Kind.EXPERIMENT, "experiments", "an experiment"),
):
    _add(_kind, _names, _what)


def describe_access(kind: Kind, name: str, access: Access) -> dict[str, object]:
    """Who may see a name, as the API shows it."""
    return {
        "object": "access",
        "kind": str(kind),
        "name": name,
        "visibility": str(access.visibility),
        "shared_with": sorted(access.shared_with),
    }


def changed_access(access: Access, body: Mapping[str, object]) -> Access:
    """`access` with what a body says; raises ApiError (400)."""
    check_known(body, _FIELDS)
    visibility = body.get("visibility", str(access.visibility))
    if visibility not in list(Visibility):
        choices = ", ".join(Visibility)
        message = f"unknown visibility {str(visibility)[:80]!r}; choose {choices}"
        raise ApiError(400, message, "invalid_parameter", "visibility")
    tenants = body.get("shared_with", sorted(access.shared_with))
    if not isinstance(tenants, list) or not all(isinstance(tenant, str) for tenant in tenants):
        message = f'shared_with must be a list, such as ["umbra"], not {kind_of(tenants)}'
        raise ApiError(400, message, "invalid_parameter", "shared_with")
    return Access(Visibility(str(visibility)), frozenset(tenants))


async def _get(gateway: Gateway, vectors: Vectors, kind: Kind, name: str) -> dict[str, object]:
    try:
        owned = await asyncio.to_thread(vectors.check_owned, kind, name)
    except VectorNotFound:
        if "/" in name or kind is Kind.EXPERIMENT:
            raise
        try:
            return await asyncio.to_thread(_named_access, vectors, kind, f"{name}/access")
        except VectorNotFound:
            pass
        raise
    access = await asyncio.to_thread(gateway.accounts.access, kind, owned)
    return describe_access(kind, owned, access)


def _named_access(vectors: Vectors, kind: Kind, name: str) -> dict[str, object]:
    if kind is Kind.LOADOUT:
        return describe_loadout(vectors.loadout(Reference.parse(name)))
    return describe(vectors.look_up(Reference.parse(name)))


async def _put(
    request: Request, gateway: Gateway, vectors: Vectors, by: ByDep, kind: Kind, name: str
) -> dict[str, object]:
    body = parse_body(await read_body(request, MAX_BODY_BYTES))
    owned = await asyncio.to_thread(vectors.check_owned, kind, name)
    known = await asyncio.to_thread(gateway.accounts.access, kind, owned)
    access = changed_access(known, body)
    await asyncio.to_thread(gateway.accounts.set_access, by, kind, owned, access)
    return describe_access(kind, owned, access)
