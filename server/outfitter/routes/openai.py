"""The routes of OpenAI's API: checked, resolved, and relayed to the engine."""

import json
from collections.abc import Mapping

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
from outfitter.deps import Gateway, GatewayDep, PrincipalDep
from outfitter.engine.hidden import with_usage
from outfitter.engine.rewrite import Identity
from outfitter.errors import ApiError, from_task_vector_error
from outfitter.routes.body import read_body
from outfitter.routes.observed import Observed, observe
from outfitter.routes.relayed import EngineRequest, RelayedResponse
from taskvectors.errors import TaskVectorError

router = APIRouter(prefix="/v1")

LOADOUT_HEADER = "x-taskvectors-loadout"
_SCHEMAS = {
    "/v1/chat/completions": "ChatCompletionRequest",
    "/v1/completions": "CompletionRequest",
}
_PASSED_HEADERS = ("x-request-id", "traceparent", "tracestate")


@router.post("/chat/completions")
async def chat_completions(
    request: Request, gateway: GatewayDep, principal: PrincipalDep
) -> Response:
    """A chat completion, streamed or not."""
    return await _observed(request, gateway, principal, "/v1/chat/completions")


@router.post("/completions")
async def completions(request: Request, gateway: GatewayDep, principal: PrincipalDep) -> Response:
    """A text completion, streamed or not."""
    return await _observed(request, gateway, principal, "/v1/completions")


@router.get("/models")
async def list_models(gateway: GatewayDep) -> dict[str, object]:
    """The models that requests may name."""
    return {"object": "list", "data": [_model(gateway)]}


@router.get("/models/{model:path}")
async def get_model(model: str, gateway: GatewayDep) -> dict[str, object]:
    """One model."""
    check_model({"model": model}, gateway.config.served_names)
    return _model(gateway)


async def _observed(
    request: Request, gateway: Gateway, principal: Principal, path: str
) -> Response:
    observed = observe(request, gateway, principal, path)
    with observed.refusals():
        return await _complete(request, gateway, observed, path)


async def _complete(request: Request, gateway: Gateway, observed: Observed, path: str) -> Response:
    body = parse_body(await read_body(request, gateway.config.max_body_bytes))
    model = check_model(body, gateway.config.served_names)
    observed.outcome.model, observed.outcome.is_stream = model, body.get("stream") is True
    relay = gateway.ready_relay()
    check_fields(body, gateway.known_fields.get(_SCHEMAS[path]))
    plan = await _plan(gateway, body)
    fields, hides_usage = with_usage(body)
    content = _engine_body(fields, plan, gateway.config.name)
    identity = Identity(model, plan.label, plan.task_vectors)
    headers = _engine_headers(request, plan)
    asked = EngineRequest(path, content, headers, hides_usage)
    return RelayedResponse(relay, asked, identity, observed)


async def _plan(gateway: Gateway, body: dict[str, object]) -> Plan:
    try:
        return await gateway.plan(requested_loadout(body))
    except TaskVectorError as error:
        raise from_task_vector_error(error, TASK_VECTORS) from error


def _engine_body(body: Mapping[str, object], plan: Plan, base: str) -> bytes:
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
