"""Loadouts that are saved under a name, resolved to digests once and for all."""

import asyncio
from collections.abc import Mapping

from fastapi import APIRouter, Request

from outfitter.control.principal import Principal
from outfitter.control.resolve import TASK_VECTORS, parse_body, requested_loadout
from outfitter.deps import ByDep, Gateway, GatewayDep, VectorsDep
from outfitter.errors import ApiError, from_task_vector_error
from outfitter.routes.body import read_body
from outfitter.routes.task_vectors import limit_of
from outfitter.schemas import check_known, describe_loadout, only, required
from taskvectors.errors import InvalidLoadout, InvalidReference, TaskVectorError
from taskvectors.spec import Loadout, Reference

router = APIRouter(prefix="/v1/loadouts")

MAX_BODY_BYTES = 2**18


@router.post("", status_code=201)
async def save(
    request: Request, gateway: GatewayDep, vectors: VectorsDep, by: ByDep
) -> dict[str, object]:
    """Save what a request's `task_vectors` says now under a name, as its next version."""
    body = parse_body(await read_body(request, MAX_BODY_BYTES))
    check_known(body, ("name", TASK_VECTORS))
    name = vectors.check_name(required(body, "name", str, '"acme/support-bot"'))
    loadout = await _resolved(gateway, body, by.principal)
    asked = body[TASK_VECTORS]
    kept = asked if isinstance(asked, Mapping) else {"vectors": asked}
    saved = await asyncio.to_thread(vectors.save_loadout, name, loadout, kept, by.publisher)
    await gateway.note(by, "loadout.save", f"{saved.name}@{saved.version}")
    gateway.prefetch(loadout.digests)
    return describe_loadout(saved)


@router.get("")
async def find(request: Request, vectors: VectorsDep) -> dict[str, object]:
    """A page of the saved loadouts."""
    params = request.query_params
    check_known(params.keys(), ("limit", "after"), "query parameter")
    limit, after = limit_of(only(params, "limit") or "100"), only(params, "after")
    page, after = await asyncio.to_thread(vectors.loadouts, limit, after)
    data = [describe_loadout(saved) for saved in page]
    return {"object": "list", "data": data, "has_more": after is not None, "after": after}


@router.get("/{reference:path}")
async def get_one(reference: str, vectors: VectorsDep) -> dict[str, object]:
    """A saved loadout: the latest version of a name, or the one that is pinned."""
    name, version = named(reference)
    return describe_loadout(await asyncio.to_thread(vectors.loadout, name, version))


@router.delete("/{reference:path}")
async def delete(
    reference: str, gateway: GatewayDep, vectors: VectorsDep, by: ByDep
) -> dict[str, object]:
    """Forget a name, or one version of it."""
    name, version = named(reference)
    await asyncio.to_thread(vectors.delete_loadout, name, version)
    await gateway.note(by, "loadout.delete", reference)
    return {"id": reference, "object": "loadout", "deleted": True}


async def _resolved(gateway: Gateway, body: dict[str, object], principal: Principal) -> Loadout:
    try:
        requested = requested_loadout(body)
        if requested is None:
            message = 'task_vectors is required, such as {"json": 0.8}'
            raise ApiError(400, message, "invalid_parameter", TASK_VECTORS)
        plan = await gateway.plan(requested, principal)
        if plan.loadout.is_base:
            raise InvalidLoadout("the loadout adds nothing to the base: no vector has a weight")
    except TaskVectorError as error:
        raise from_task_vector_error(error, TASK_VECTORS) from error
    return plan.loadout


def named(text: str) -> tuple[str, int | None]:
    """The name and version; raises InvalidReference."""
    reference = Reference.parse(text)
    if reference.path is None or reference.digest or reference.tag:
        raise InvalidReference(
            f"a saved loadout is named name, namespace/name or namespace/name@3, not {text[:200]!r}"
        )
    return reference.path, reference.version
