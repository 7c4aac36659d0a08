"""Experiments: defined, changed, started, ended; each change is a version.

Whoever may see an experiment may read its definition and use it as a model; who changed it, and
why, is told to those who may change it.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request

from outfitter.accounts import By
from outfitter.control.experiments.changes import WEIGHTS, edited
from outfitter.control.experiments.decide import WINNER, Finding
from outfitter.control.experiments.definition import FIELDS, Definition
from outfitter.control.experiments.experiment import Experiment
from outfitter.control.experiments.growthbook import payload
from outfitter.control.experiments.reading import Fields
from outfitter.control.experiments.status import PAUSE, SHIP, START, STOP, Status, after
from outfitter.control.experiments.steps import paused, started, stopped
from outfitter.control.principal import Scope
from outfitter.control.resolve import parse_body
from outfitter.control.rights import check_change, check_scope, viewer_of
from outfitter.deps import ByDep, GatewayDep, PrincipalDep
from outfitter.errors import ApiError
from outfitter.experiments.book import Decide
from outfitter.experiments.pinning import check_automatic, pinned
from outfitter.experiments.shipping import Shipment, ship
from outfitter.experiments.shown import describe, describe_version
from outfitter.gateway import Gateway
from outfitter.routes.body import read_body
from outfitter.routes.documented import EXPERIMENT, VERSION, json_body
from outfitter.routes.task_vectors import limit_of
from outfitter.schemas import check_known, only
from outfitter.vectors import plain_name

router = APIRouter(prefix="/v1/experiments")

MAX_BODY_BYTES = 2**18
VERSION_FIELD = "version"
_SHIP = ("variant", "as", "promote", VERSION_FIELD)
_CHANGES = {**EXPERIMENT, WEIGHTS: {"type": "object"}, **VERSION}


@router.post("", status_code=201, openapi_extra=json_body(EXPERIMENT, "name", "variants"))
async def create(request: Request, gateway: GatewayDep, by: ByDep) -> dict[str, object]:
    """Define an experiment. It is a draft, and serves nobody until it is started."""
    definition = Definition.parse(parse_body(await read_body(request, MAX_BODY_BYTES)))
    viewer = viewer_of(by.principal)
    check_change(viewer, definition.name)  # before a variant is looked up in the owner's name
    check_automatic(by.principal, definition)
    await pinned(gateway, definition)
    book = gateway.book
    await asyncio.to_thread(gateway.quotas.require_experiment, by.principal, book.count)
    return describe(await asyncio.to_thread(book.create, by, viewer, definition))


@router.get("")
async def find(request: Request, gateway: GatewayDep, principal: PrincipalDep) -> dict[str, object]:
    """A page of the experiments, by name; `status=` lists those that stand so."""
    params = request.query_params
    check_known(params.keys(), ("limit", "after", "status"), "query parameter")
    limit, after = limit_of(only(params, "limit") or "100"), only(params, "after")
    status = _status(only(params, "status"))
    viewer = viewer_of(principal)
    page, after = await asyncio.to_thread(gateway.book.page, viewer, limit, after, status)
    data = [describe(one) for one in page]
    return {"object": "list", "data": data, "has_more": after is not None, "after": after}


@router.get("/{name:path}/versions")
async def versions(name: str, gateway: GatewayDep, principal: PrincipalDep) -> dict[str, object]:
    """Every version, newest first: who made it, when, and by which figures."""
    found = await asyncio.to_thread(gateway.book.versions, viewer_of(principal), name)
    return {"object": "list", "data": [describe_version(one) for one in found], "has_more": False}


@router.get("/{name:path}/growthbook")
async def growthbook(
    name: str, request: Request, gateway: GatewayDep, principal: PrincipalDep
) -> dict[str, object]:
    """The payload of GrowthBook's SDKs, which assign by it as this gateway does.

    attribute: of their user, that holds the unit; `id` without.
    """
    params = request.query_params
    check_known(params.keys(), ("attribute",), "query parameter")
    found = await asyncio.to_thread(gateway.book.find, viewer_of(principal), name)
    if found.status is Status.DRAFT:
        message = f"the experiment {found.name!r} is a draft: it assigns nobody before it starts"
        raise ApiError(409, message, "experiment_status")
    values = {key: key for key in found.definition.shares}
    attribute = only(params, "attribute") or "id"
    return payload(found.name, found.split, values, attribute, is_running=found.is_running)


@router.get("/{name:path}")
async def get_one(name: str, gateway: GatewayDep, principal: PrincipalDep) -> dict[str, object]:
    """An experiment as it is now."""
    return describe(await asyncio.to_thread(gateway.book.find, viewer_of(principal), name))


@router.patch("/{name:path}", openapi_extra=json_body(_CHANGES))
async def edit(name: str, request: Request, gateway: GatewayDep, by: ByDep) -> dict[str, object]:
    """Change fields of the definition; `weights` changes those of the variants that it names.

    Of one that was started, what would change the meaning of what was measured stays.
    """
    body = parse_body(await read_body(request, MAX_BODY_BYTES))
    expected = _expected(body, (*FIELDS, WEIGHTS, VERSION_FIELD))
    changes = {key: value for key, value in body.items() if key != VERSION_FIELD}
    old = await asyncio.to_thread(gateway.book.owned, viewer_of(by.principal), name)
    now = int(time.time())
    new = edited(old, changes, now)
    check_automatic(by.principal, new.definition)
    if new.status is Status.DRAFT:
        await pinned(gateway, new.definition)
    return await _changed(
        gateway, by, name, "edit", lambda one: edited(one, changes, now), expected
    )


@router.post("/{name:path}/start", openapi_extra=json_body(VERSION, optional=True))
async def start(name: str, request: Request, gateway: GatewayDep, by: ByDep) -> dict[str, object]:
    """Assign and count from now on, or go on after a pause.

    What its variants stand for is fixed the first time: saved loadouts at their version of now.
    """
    expected = await _body_version(request)
    old = await asyncio.to_thread(gateway.book.owned, viewer_of(by.principal), name)
    _check_expected(old, expected)
    check_automatic(by.principal, old.definition)
    pins, now = dict(old.pins) or await pinned(gateway, old.definition), int(time.time())
    decide: Decide = lambda one: started(one, pins, now)  # noqa: E731
    answer = await _changed(gateway, by, name, START, decide, old.version)
    gateway.prefetch(d for pin in pins.values() for d in pin.plan.loadout.digests)
    return answer


@router.post("/{name:path}/pause", openapi_extra=json_body(VERSION, optional=True))
async def pause(name: str, request: Request, gateway: GatewayDep, by: ByDep) -> dict[str, object]:
    """Serve the control to everybody and count nothing, until it is started again."""
    return await _changed(gateway, by, name, PAUSE, paused, await _body_version(request))


@router.post("/{name:path}/stop", openapi_extra=json_body(VERSION, optional=True))
async def stop(name: str, request: Request, gateway: GatewayDep, by: ByDep) -> dict[str, object]:
    """Serve the control to everybody, for good; what was measured stays."""
    return await _changed(gateway, by, name, STOP, stopped, await _body_version(request))


@router.post(
    "/{name:path}/ship",
    openapi_extra=json_body(
        {
            "variant": {"type": "string"},
            "as": {"type": "string"},
            "promote": {"type": "boolean"},
            **VERSION,
        },
        optional=True,
    ),
)
async def ship_winner(
    name: str, request: Request, gateway: GatewayDep, by: ByDep
) -> dict[str, object]:
    """End it with a winner, which everybody gets from now on: `variant`, or the one that has won.

    `as`: it becomes the next version of that saved loadout. `promote`: it is written into the base.
    """
    raw = await read_body(request, MAX_BODY_BYTES)
    body = parse_body(raw) if raw.strip() else {}
    expected, fields = _expected(body, _SHIP), Fields(body, "", _SHIP)
    save_as = plain_name(fields.text("as", most=200)) if "as" in fields else None
    variant = fields.name("variant") if "variant" in fields else None
    promote = fields.flag("promote", default=False)
    if promote:
        check_scope(by.principal, (Scope.OPERATE,))
    viewer = viewer_of(by.principal)
    old = await asyncio.to_thread(gateway.book.owned, viewer, name)
    _check_expected(old, expected)
    after(old.status, SHIP)
    found = (await asyncio.to_thread(gateway.analyst.analyse, old)).findings
    wanted = Shipment(variant or _winner(found), save_as, promote)
    figures = {"verdict": found[0].to_json()}
    return describe(await ship(gateway, by, viewer, old, wanted, figures))


@router.delete("/{name:path}")
async def delete(name: str, gateway: GatewayDep, by: ByDep) -> dict[str, object]:
    """Forget an experiment that does not run, with its versions and what it measured."""
    await asyncio.to_thread(gateway.book.delete, by, viewer_of(by.principal), name)
    return {"id": name, "object": "experiment", "deleted": True}


async def _changed(
    gateway: Gateway, by: By, name: str, action: str, decide: Decide, expected: int | None
) -> dict[str, object]:
    viewer, change = viewer_of(by.principal), gateway.book.change
    return describe(
        await asyncio.to_thread(lambda: change(by, viewer, name, action, decide, expected=expected))
    )


async def _body_version(request: Request) -> int | None:
    """Of a body that may be left out."""
    raw = await read_body(request, MAX_BODY_BYTES)
    return _expected(parse_body(raw), (VERSION_FIELD,)) if raw.strip() else None


def _expected(body: dict[str, Any], known: tuple[str, ...]) -> int | None:
    """The version that a body says is the latest."""
    fields = Fields(body, "", known)
    return fields.whole(VERSION_FIELD, 1, 2**31 - 1) if VERSION_FIELD in fields else None


def _winner(found: Sequence[Finding]) -> str:
    """Raises ApiError (409) while there is none."""
    for finding in found:
        if finding.kind == WINNER and finding.variant is not None:
            return finding.variant
    message = f"no variant has won yet: {found[0].reason}; name one with variant to ship it anyway"
    raise ApiError(409, message, "no_winner", "variant")


def _check_expected(found: Experiment, expected: int | None) -> None:
    if expected is not None and found.version != expected:
        message = f"the experiment {found.name!r} has version {found.version}, not {expected}"
        raise ApiError(409, message, "conflict", VERSION_FIELD)


def _status(text: str | None) -> Status | None:
    if text is None:
        return None
    try:
        return Status(text)
    except ValueError as error:
        message = f"unknown status {text[:80]!r}; choose {', '.join(Status)}"
        raise ApiError(400, message, "invalid_parameter", "status") from error
