"""What clients say of answers: by request id, one at a time or as JSON lines."""

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request

from outfitter.control.experiments.feedback import (
    MAX_LABEL,
    MAX_VALUE,
    Feedback,
    parse_lines,
)
from outfitter.control.resolve import parse_body
from outfitter.deps import GatewayDep, PrincipalDep
from outfitter.routes.body import read_body
from outfitter.routes.documented import Schema, json_body

router = APIRouter(prefix="/v1/feedback")

MAX_BODY_BYTES = 8 * 2**20
JSON_LINES = ("application/jsonl", "application/x-ndjson", "application/jsonlines")
_NAME: Schema = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"}
_ONE: Schema = {
    "request_id": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
    "metric": {**_NAME, "example": "helpful"},
    "value": {"type": ["number", "null"], "minimum": -MAX_VALUE, "maximum": MAX_VALUE},
    "label": {"type": ["string", "null"], "maxLength": MAX_LABEL},
    "id": {"type": ["string", "null"]},
}
_BODY = json_body(_ONE, "request_id", "metric")
_BODY["requestBody"]["content"][JSON_LINES[0]] = {"schema": {"type": "string", "format": "binary"}}


@router.post("", openapi_extra=_BODY)
async def send(request: Request, gateway: GatewayDep, principal: PrincipalDep) -> dict[str, Any]:
    """Say something of an answer, early or late; once more replaces it.

    Body: `{"request_id": "…", "metric": "helpful", "value": 1}`, or `label` instead of `value`; or
    lines of that as `application/jsonl`, all of which are taken or none.
    """
    raw = await read_body(request, MAX_BODY_BYTES)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in JSON_LINES:
        given = await asyncio.to_thread(parse_lines, raw)
    else:
        given = [Feedback.parse(parse_body(raw))]
    await gateway.quotas.count(principal, "feedback_per_minute", len(given))
    add, at = gateway.events.add_feedback, time.time()
    await asyncio.to_thread(add, principal.tenant, given, at)
    return {"object": "feedback", "received": len(given)}
