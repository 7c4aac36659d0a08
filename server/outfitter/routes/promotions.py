"""Promotions, for the operator only: a loadout becomes the resident base, or ceases to be it.

They need the scope `operate`; and those that change the base are shut unless the gateway was
started with `--allow-promotions`. What is promoted is asked of the engine, and not remembered
here: an engine that was started anew has promoted nothing.
"""

import asyncio
import json
from typing import Any

from fastapi import APIRouter, Request

from outfitter.control.fields import TASK_VECTORS
from outfitter.control.principal import Principal
from outfitter.control.resolve import parse_body, requested_loadout
from outfitter.deps import ByDep, GatewayDep
from outfitter.errors import ApiError, from_task_vector_error
from outfitter.gateway import Gateway
from outfitter.routes.body import read_body
from outfitter.routes.documented import MIX, NAME, json_body
from outfitter.routes.loadouts import named
from outfitter.schemas import check_known, only, required
from taskvectors.errors import InvalidLoadout, TaskVectorError
from taskvectors.spec import Loadout

router = APIRouter(prefix="/v1/promotions")

MAX_BODY_BYTES = 2**18
LOADOUT = "loadout"


@router.post("", openapi_extra=json_body({TASK_VECTORS: MIX, LOADOUT: NAME}))
async def promote(request: Request, gateway: GatewayDep, by: ByDep) -> dict[str, object]:
    """Promote what `task_vectors` says, or a saved `loadout`; answers when it is in the weights.

    Running requests finish first, and others wait. What was promoted before is replaced.
    """
    _check_allowed(gateway)
    body = parse_body(await read_body(request, MAX_BODY_BYTES))
    check_known(body, (TASK_VECTORS, LOADOUT))
    loadout = await _loadout(gateway, by.principal, body)
    state = await gateway.ready_relay().promotion("POST", loadout.canonical)
    await gateway.note(by, "promotion.promote", f"sha256:{loadout.digest}")
    return _describe(state)


@router.get("")
async def state(request: Request, gateway: GatewayDep) -> dict[str, object]:
    """What is promoted now. `?checksum=true` hashes all weights, and stops the engine for it."""
    params = request.query_params
    check_known(params.keys(), ("checksum",), "query parameter")
    checksum = only(params, "checksum") or "false"
    if checksum not in ("true", "false"):
        message = f"checksum must be true or false, not {checksum[:80]!r}"
        raise ApiError(400, message, "invalid_parameter", "checksum")
    if checksum == "true":
        _check_allowed(gateway)
    return _describe(await gateway.ready_relay().promotion("GET", checksum=checksum == "true"))


@router.delete("")
async def demote(gateway: GatewayDep, by: ByDep) -> dict[str, object]:
    """Put the base's own weights back; nothing changes when nothing is promoted."""
    _check_allowed(gateway)
    state = await gateway.ready_relay().promotion("DELETE")
    await gateway.note(by, "promotion.demote", "base")
    return _describe(state)


def _check_allowed(gateway: Gateway) -> None:
    if not gateway.config.allow_promotions:
        message = "promotions change the model for everybody: start with --allow-promotions"
        raise ApiError(403, message, "promotions_not_allowed")


async def _loadout(gateway: Gateway, principal: Principal, body: dict[str, object]) -> Loadout:
    if (TASK_VECTORS in body) == (LOADOUT in body):
        message = 'give either task_vectors, such as {"json": 0.8}, or loadout, a saved one'
        raise ApiError(400, message, "invalid_parameter", TASK_VECTORS)
    try:
        if LOADOUT in body:
            reference = named(required(body, LOADOUT, str, '"acme/support-bot"'))
            look_up = gateway.vectors_for(principal).loadout
            saved = await asyncio.to_thread(look_up, reference)
            return (await gateway.plan(principal, None, saved)).loadout
        loadout = (await gateway.plan(principal, requested_loadout(body))).loadout
        if loadout.is_base:
            raise InvalidLoadout("the loadout adds nothing to the base: no vector has a weight")
    except TaskVectorError as error:
        param = LOADOUT if LOADOUT in body else TASK_VECTORS
        raise from_task_vector_error(error, param) from error
    return loadout


def _describe(state: dict[str, Any]) -> dict[str, object]:
    """The engine's state in the words of the API."""
    text = state.pop("loadout", None)
    loadout = None if text is None else Loadout.from_canonical(text)
    return {
        "object": "promotion",
        "promoted": loadout is not None,
        "loadout": None if loadout is None else f"sha256:{loadout.digest}",
        "resolved": None if loadout is None else json.loads(loadout.canonical),
        **state,
    }
