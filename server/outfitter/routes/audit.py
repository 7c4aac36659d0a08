"""Who changed what, and which key used which loadout: for holders of the scope `admin`."""

import asyncio
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from starlette.datastructures import QueryParams

from outfitter.deps import GatewayDep
from outfitter.errors import ApiError
from outfitter.routes.task_vectors import limit_of
from outfitter.schemas import check_known, only
from outfitter.state.tenancy import TrailQuery

router = APIRouter(prefix="/v1/audit")

_TEXTS = ("tenant", "key", "after")
_TIMES = ("since", "until")


@router.get("")
async def changes(request: Request, gateway: GatewayDep) -> dict[str, object]:
    """A page of the changes, the newest first."""
    query = query_of(request.query_params, ("action", "subject"))
    page, after = await asyncio.to_thread(gateway.accounts.changes, query)
    return _page([{"object": "audit.entry", **asdict(entry)} for entry in page], after)


@router.get("/loadouts")
async def loadouts(request: Request, gateway: GatewayDep) -> dict[str, object]:
    """Which key used which loadout, by the hour, the newest first."""
    query = query_of(request.query_params, ("loadout",))
    page, after = await asyncio.to_thread(gateway.accounts.used_loadouts, query)
    return _page([{"object": "audit.loadout_use", **asdict(use)} for use in page], after)


def query_of(params: QueryParams, more: tuple[str, ...]) -> TrailQuery:
    """What a query asks for; `more`: texts that this route knows, too. Raises ApiError (400)."""
    texts = (*_TEXTS, *more)
    check_known(params.keys(), (*texts, *_TIMES, "limit"), "query parameter")
    given: dict[str, Any] = {name: only(params, name) for name in texts}
    given |= {name: _time(name, text) for name in _TIMES if (text := only(params, name))}
    return TrailQuery(**given, limit=limit_of(only(params, "limit") or "100"))


def _time(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 12):
        message = f"{name} must be Unix time in seconds, not {text[:40]!r}"
        raise ApiError(400, message, "invalid_parameter", name)
    return int(text)


def _page(data: list[dict[str, object]], after: str | None) -> dict[str, object]:
    return {"object": "list", "data": data, "has_more": after is not None, "after": after}
