"""Loadouts that are saved under a name, resolved to digests once and for all, to be models."""

import asyncio
from collections.abc import Mapping

from fastapi import APIRouter, Request

from outfitter.control.fields import TASK_VECTORS
from outfitter.control.principal import Principal
from outfitter.control.resolve import Plan, parse_body, requested_loadout
from outfitter.deps import ByDep, GatewayDep, VectorsDep
from outfitter.errors import ApiError, from_task_vector_error
from outfitter.gateway import Gateway
from outfitter.routes.body import read_body
from outfitter.routes.documented import SAVED, json_body
from outfitter.routes.task_vectors import limit_of
from outfitter.schemas import check_known, describe_loadout, only, optional, required
from outfitter.state.records import ADD, FORBID, REQUEST_VECTORS, Terms
from outfitter.vectors import plain_name
from taskvectors.errors import InvalidLoadout, InvalidReference, TaskVectorError
from taskvectors.spec import Reference

router = APIRouter(prefix="/v1/loadouts")

MAX_BODY_BYTES = 2**18
_RULE = "request_vectors"


@router.post("", status_code=201, openapi_extra=json_body(SAVED, "name", TASK_VECTORS))
async def save(
    request: Request, gateway: GatewayDep, vectors: VectorsDep, by: ByDep
) -> dict[str, object]:
    """Save what a request's `task_vectors` says now under a name, as its next version.

    From then on it is what the name means as a model.
    """
    body = parse_body(await read_body(request, MAX_BODY_BYTES))
    check_known(body, tuple(SAVED))
    name = vectors.check_name(required(body, "name", str, '"acme/support-bot"'))
    _check_free(gateway, name)
    rule, description = _rule(body), optional(body, "description")
    plan = await _resolved(gateway, by.principal, body)
    if rule == ADD and not plan.loadout.is_linear:
        message = f"request_vectors 'add' needs the method 'linear', not {plan.loadout.method!r}"
        raise ApiError(400, message, "invalid_parameter", _RULE)
    terms = Terms(rule, description, gateway.ready_base().fingerprint, plan.task_vectors)
    asked = body[TASK_VECTORS]
    kept = asked if isinstance(asked, Mapping) else {"vectors": asked}
    save_, publisher = vectors.save_loadout, by.publisher
    saved = await asyncio.to_thread(save_, name, plan.loadout, kept, publisher, terms)
    await gateway.note(by, "loadout.save", saved.id)
    gateway.prefetch(plan.loadout.digests)
    return describe_loadout(saved)


@router.get("")
async def find(request: Request, vectors: VectorsDep) -> dict[str, object]:
    """A page of the saved loadouts, or with `name=` all versions of one, newest first."""
    params = request.query_params
    check_known(params.keys(), ("limit", "after", "name"), "query parameter")
    limit, after = limit_of(only(params, "limit") or "100"), only(params, "after")
    if (name := only(params, "name")) is not None:
        page, after = await asyncio.to_thread(vectors.loadout_versions, plain_name(name)), None
    else:
        page, after = await asyncio.to_thread(vectors.loadouts, limit, after)
    data = [{**describe_loadout(saved), "latest": saved.is_latest} for saved in page]
    return {"object": "list", "data": data, "has_more": after is not None, "after": after}


@router.get("/{reference:path}")
async def get_one(reference: str, vectors: VectorsDep) -> dict[str, object]:
    """A saved loadout: the latest version of a name, or the one that is pinned."""
    return describe_loadout(await asyncio.to_thread(vectors.loadout, named(reference)))


@router.patch(
    "/{name:path}", openapi_extra=json_body({"latest": {"type": "integer", "minimum": 1}}, "latest")
)
async def move(
    name: str, request: Request, gateway: GatewayDep, vectors: VectorsDep, by: ByDep
) -> dict[str, object]:
    """Let the bare name mean another version, such as the one before; all at once, for everybody.

    Requests that run finish on what they started with.
    """
    body = parse_body(await read_body(request, MAX_BODY_BYTES))
    check_known(body, ("latest",))
    number = required(body, "latest", int, "2")
    if not 0 < number < 10**9:
        message = f"latest must be the number of a version, such as 2, not {number}"
        raise ApiError(400, message, "invalid_parameter", "latest")
    moved = await asyncio.to_thread(vectors.move_loadout, plain_name(name), number)
    await gateway.note(by, "loadout.move", moved.id)
    gateway.prefetch(moved.loadout.digests)
    return describe_loadout(moved)


@router.delete("/{reference:path}")
async def delete(
    reference: str, gateway: GatewayDep, vectors: VectorsDep, by: ByDep
) -> dict[str, object]:
    """Forget a name, or one version of it."""
    parsed = named(reference)
    await asyncio.to_thread(vectors.delete_loadout, str(parsed.path), parsed.version)
    await gateway.note(by, "loadout.delete", reference)
    return {"id": reference, "object": "loadout", "deleted": True}


def named(text: str) -> Reference:
    """A name, or a name and version; raises InvalidReference."""
    reference = Reference.parse(text)
    if reference.path is None or reference.digest or reference.tag:
        raise InvalidReference(
            f"a saved loadout is named name, namespace/name or namespace/name@3, not {text[:200]!r}"
        )
    return reference


async def _resolved(gateway: Gateway, principal: Principal, body: dict[str, object]) -> Plan:
    try:
        requested = requested_loadout(body)
        if requested is None:
            message = 'task_vectors is required, such as {"json": 0.8}'
            raise ApiError(400, message, "invalid_parameter", TASK_VECTORS)
        plan = await gateway.plan(principal, requested)
        if plan.loadout.is_base:
            raise InvalidLoadout("the loadout adds nothing to the base: no vector has a weight")
    except TaskVectorError as error:
        raise from_task_vector_error(error, TASK_VECTORS) from error
    return plan


def _check_free(gateway: Gateway, name: str) -> None:
    """Raise ApiError (409) for a name that requests already mean the base by."""
    if name.lower() in {served.lower() for served in gateway.config.served_names}:
        message = f"{name!r} is what the base is called here; choose another name"
        raise ApiError(409, message, "conflict", "name")


def _rule(body: Mapping[str, object]) -> str:
    rule = body.get(_RULE, FORBID)
    if rule not in REQUEST_VECTORS:
        right = ", ".join(REQUEST_VECTORS)
        message = f"unsupported request_vectors {str(rule)[:80]!r}; choose {right}"
        raise ApiError(400, message, "invalid_parameter", _RULE)
    return str(rule)
