"""What experiments found: figures and verdict for whoever may change them, and vetoes."""

import asyncio
import csv
import io
import json
from collections.abc import Iterator, Sequence

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from outfitter.control.experiments import acts, told
from outfitter.control.experiments.reading import Fields
from outfitter.control.resolve import parse_body
from outfitter.control.rights import viewer_of
from outfitter.deps import ByDep, GatewayDep, PrincipalDep
from outfitter.errors import ApiError
from outfitter.experiments.shown import describe
from outfitter.gateway import Gateway
from outfitter.routes.body import read_body
from outfitter.routes.documented import json_body
from outfitter.routes.usage import as_csv, cell, wants_csv
from outfitter.schemas import check_known

router = APIRouter(prefix="/v1/experiments")

MAX_BODY_BYTES = 4096
EVENT_COLUMNS = (
    *("experiment", "request_id", "tenant", "variant", "version", "unit", "at", "is_counted"),
    *("is_shadow", "status", "error", "latency_s", "first_token_s", "inter_token_s"),
    *("prompt_tokens", "completion_tokens", "cached_tokens", "cost", "finish_reason"),
    *("grades", "feedback"),
)


@router.get("/{name:path}/results")
async def results(
    name: str, request: Request, gateway: GatewayDep, principal: PrincipalDep
) -> Response:
    """The figures of every metric and variant, valid at any time, and what they say.

    format: `json`, or `csv` (a row per metric and variant) with the same numbers.
    """
    params = request.query_params
    check_known(params.keys(), ("format",), "query parameter")
    is_csv = wants_csv(params, request.headers.get("accept", ""))
    found = await asyncio.to_thread(gateway.book.owned, viewer_of(principal), name)
    analysis = await asyncio.to_thread(gateway.analyst.results, found)
    if not is_csv:
        return JSONResponse(analysis)
    return _csv(as_csv(told.COLUMNS, told.table(analysis)), "results")


@router.get("/{name:path}/events")
async def events(name: str, gateway: GatewayDep, principal: PrincipalDep) -> Response:
    """Every request that was recorded, as CSV, with its grades and its feedback as JSON."""
    found = await asyncio.to_thread(gateway.book.owned, viewer_of(principal), name)
    headers = {"content-disposition": 'attachment; filename="events.csv"'}
    lines = _event_lines(gateway, found.name)
    return StreamingResponse(lines, media_type="text/csv", headers=headers)


@router.post(
    "/{name:path}/veto",
    openapi_extra=json_body(
        {"act": {"type": "string"}, "lift": {"type": "boolean"}}, optional=True
    ),
)
async def veto(name: str, request: Request, gateway: GatewayDep, by: ByDep) -> dict[str, object]:
    """Forbid what an experiment would do by itself.

    act: the pending one without; a kind (`rollback`, `drop`, `ramp`, `ship`, `weights`) for good,
    or one act, such as `ramp:2` or `ship:warm`. lift: it is allowed again.
    """
    viewer, book = viewer_of(by.principal), gateway.book
    found = await asyncio.to_thread(book.owned, viewer, name)
    raw = await read_body(request, MAX_BODY_BYTES)
    fields = Fields(parse_body(raw) if raw.strip() else {}, "", ("act", "lift"))
    is_lifted = fields.flag("lift", default=False)
    act = fields.text("act", most=100) if "act" in fields else None
    if act is None:
        if found.pending is None or is_lifted:
            message = "nothing is pending; say which act, such as rollback, ramp:2 or ship:warm"
            raise ApiError(409, message, "nothing_pending", "act")
        act = found.pending.act
    _check_act(fields, act)
    decide = acts.allowed if is_lifted else acts.vetoed
    changed = await asyncio.to_thread(
        lambda: book.change(
            by,
            viewer,
            found.name,
            "allow" if is_lifted else "veto",
            lambda one: decide(one, act),
            figures={"act": act},
        )
    )
    return describe(changed)


def _check_act(fields: Fields, act: str) -> None:
    kind, colon, what = act.partition(":")
    if kind not in acts.KINDS or (colon and not what):
        raise fields.wrong("act", f"one of {', '.join(acts.KINDS)}, or one act such as ramp:2")


def _csv(text: str, name: str) -> Response:
    headers = {"content-disposition": f'attachment; filename="{name}.csv"'}
    return Response(text, media_type="text/csv", headers=headers)


def _event_lines(gateway: Gateway, name: str) -> Iterator[str]:
    """Read while it is sent, in a thread of its own."""
    yield _line(EVENT_COLUMNS)
    for row in gateway.events.rows(name):
        texts = {key: json.dumps(row[key], sort_keys=True) for key in ("grades", "feedback")}
        yield _line([{**row, **texts}[column] for column in EVENT_COLUMNS])


def _line(cells: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow([cell(one) for one in cells])
    return text.getvalue()
