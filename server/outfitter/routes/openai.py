"""The routes of OpenAI's API: checked, resolved, and relayed to the engine."""

import json

from fastapi import APIRouter, Request
from starlette.responses import Response

from outfitter.control.principal import Principal
from outfitter.control.resolve import (
    TASK_VECTORS,
    Plan,
    check_fields,
    check_model,
    parse_body,
    requested_loadout,
)
from outfitter.control.salting import salted
from outfitter.deps import Gateway, GatewayDep, PrincipalDep
from outfitter.engine.rewrite import Identity
from outfitter.errors import ApiError, from_task_vector_error
from outfitter.routes.body import read_body
from outfitter.routes.relayed import EngineRequest, RelayedResponse
from taskvectors.errors import TaskVectorError

router = APIRouter(prefix="/v1")

LOADOUT_HEADER = "x-taskvectors-loadout"
_PASSED_HEADERS = ("x-request-id", "traceparent", "tracestate")


@router.post("/chat/completions")
async def chat_completions(
    request: Request, gateway: GatewayDep, principal: PrincipalDep
) -> Response:
    """A chat completion, streamed or not."""
    path, schema = "/v1/chat/completions", "ChatCompletionRequest"
    return await _complete(request, gateway, principal, path, schema)


@router.post("/completions")
async def completions(request: Request, gateway: GatewayDep, principal: PrincipalDep) -> Response:
    """A text completion, streamed or not."""
    return await _complete(request, gateway, principal, "/v1/completions", "CompletionRequest")


@router.get("/models")
async def list_models(gateway: GatewayDep) -> dict[str, object]:
    """The models that requests may name."""
    return {"object": "list", "data": [_model(gateway)]}


@router.get("/models/{model:path}")
async def get_model(model: str, gateway: GatewayDep) -> dict[str, object]:
    """One model."""
    check_model({"model": model}, gateway.config.served_names)
    return _model(gateway)


async def _complete(
    request: Request, gateway: Gateway, principal: Principal, path: str, schema: str
) -> Response:
    body = parse_body(await read_body(request, gateway.config.max_body_bytes))
    model = check_model(body, gateway.config.served_names)
    relay = gateway.ready_relay()
    known = gateway.known_fields.get(schema)
    check_fields(body, known)
    plan = await _plan(gateway, body, principal)
    content = _engine_body(salted(body, principal, known), plan, gateway.config.name)
    identity = Identity(model, plan.label, plan.task_vectors)
    headers = _engine_headers(request, plan)
    return RelayedResponse(relay, EngineRequest(path, content, headers), identity)


async def _plan(gateway: Gateway, body: dict[str, object], principal: Principal) -> Plan:
    try:
        return await gateway.plan(requested_loadout(body), principal)
    except TaskVectorError as error:
        raise from_task_vector_error(error, TASK_VECTORS) from error


def _engine_body(body: dict[str, object], plan: Plan, base: str) -> bytes:
    fields = {key: value for key, value in body.items() if key != TASK_VECTORS}
    fields["model"] = base if plan.loadout.is_base else plan.loadout.engine_name
    try:
        return json.dumps(fields, separators=(",", ":")).encode()
    except RecursionError as error:
        raise ApiError(400, "the body is nested too deeply", "invalid_json") from error


def _engine_headers(request: Request, plan: Plan) -> dict[str, str]:
    headers = {name: request.headers[name] for name in _PASSED_HEADERS if name in request.headers}
    if not plan.loadout.is_base:
        headers[LOADOUT_HEADER] = plan.loadout.canonical
    return headers


def _model(gateway: Gateway) -> dict[str, object]:
    fields = {"object": "model", "created": gateway.created, "owned_by": "outfitter"}
    return {"id": gateway.config.name, **fields}
