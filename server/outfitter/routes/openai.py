"""The routes of OpenAI's API, vLLM's and Anthropic's: checked, resolved, and relayed."""

import json
from collections.abc import Awaitable, Callable, Mapping

from fastapi import APIRouter, Request
from starlette.responses import Response

from outfitter.control.estimate import prompt_tokens
from outfitter.control.fields import TASK_VECTORS, check_fields
from outfitter.control.principal import Principal
from outfitter.control.resolve import Plan, model_of, parse_body, requested_loadout
from outfitter.control.salting import salted
from outfitter.control.saved import Asked
from outfitter.control.surface import NOT_OFFERED, ROUTES, Route
from outfitter.deps import GatewayDep, PrincipalDep
from outfitter.engine.hidden import with_usage
from outfitter.engine.rewrite import Identity
from outfitter.errors import ApiError, from_task_vector_error
from outfitter.gateway import Gateway
from outfitter.quotas.ticket import Ticket
from outfitter.routes.body import read_body
from outfitter.routes.documented import relayed_body
from outfitter.routes.observed import Observed, observe
from outfitter.routes.relayed import EngineRequest, RelayedResponse
from taskvectors.errors import TaskVectorError

router = APIRouter()

LOADOUT_HEADER = "x-taskvectors-loadout"
_PASSED_HEADERS = ("traceparent", "tracestate")
_USAGE_PATHS = ("/v1/chat/completions", "/v1/completions")
"""Of the engine, whose streams tell their usage where they are asked for it."""
_METHODS = ("GET", "POST", "DELETE", "PUT", "PATCH")

Endpoint = Callable[[Request, Gateway, Principal], Awaitable[Response]]


def _relayed(route: Route) -> Endpoint:
    async def endpoint(request: Request, gateway: GatewayDep, principal: PrincipalDep) -> Response:
        observed = observe(request, gateway, principal, route.path)
        with observed.refusals():
            return await _relay(route, request, gateway, observed)

    return endpoint


def _refused(reason: str) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        where = f"{request.method} {request.url.path[:200]}"
        raise ApiError(404, f"{where} is not offered: {reason}", "unsupported_route")

    return endpoint


for _route in ROUTES:
    router.add_api_route(
        _route.path,
        _relayed(_route),
        methods=["POST"],
        summary=_route.summary,
        openapi_extra=relayed_body(_route),
    )
for _path, _reason in NOT_OFFERED.items():
    router.add_api_route(_path, _refused(_reason), methods=list(_METHODS), include_in_schema=False)


async def _relay(route: Route, request: Request, gateway: Gateway, observed: Observed) -> Response:
    principal, outcome = observed.outcome.principal, observed.outcome
    _check_offered(route, gateway)
    body = parse_body(await read_body(request, gateway.config.max_body_bytes))
    asked = await _asked(route, gateway, principal, body)
    outcome.model, outcome.saved_model = asked.name, asked.saved_model
    outcome.is_stream = body.get("stream") is True
    relay = gateway.ready_relay()
    if route.is_tokens and TASK_VECTORS in body:
        message = "task_vectors change no tokens: leave them out"
        raise ApiError(400, message, "unsupported_parameter", TASK_VECTORS)
    known = gateway.known_fields.get(route.target)
    check_fields(body, known)
    if not route.is_tokens:  # which reads no cache
        body = salted(body, principal, None if known is None else known.top)
    plan = await _plan(gateway, principal, body, asked)
    is_plain = route.is_tokens or plan.loadout.is_base
    fields, hides_usage = with_usage(body) if route.target in _USAGE_PATHS else (body, False)
    content = _engine_body(fields, gateway.config.name if is_plain else plan.loadout.engine_name)
    identity = Identity(asked.name, plan.label, plan.task_vectors, route.dialect, asked.saved_model)
    async with gateway.quotas.admitted(principal, request) as ticket:
        outcome.charged = ticket.charged
        gateway.quotas.sent(outcome, 0 if route.is_tokens else prompt_tokens(body))
        headers = _engine_headers(request, None if is_plain else plan, ticket)
        engine_request = EngineRequest(route.target, content, headers, hides_usage)
        return ticket.carry(RelayedResponse(relay, engine_request, identity, observed))


async def _asked(
    route: Route, gateway: Gateway, principal: Principal, body: dict[str, object]
) -> Asked:
    if not route.needs_model and body.get("model") is None:
        return Asked(gateway.config.name)
    return await gateway.asked(principal, model_of(body, gateway.config.name))


def _check_offered(route: Route, gateway: Gateway) -> None:
    if gateway.offered is not None and route.target not in gateway.offered:
        message = f"the served model does not support {route.path}"
        raise ApiError(404, message, "unsupported_route")


async def _plan(
    gateway: Gateway, principal: Principal, body: dict[str, object], asked: Asked
) -> Plan:
    param = "model" if body.get(TASK_VECTORS) is None else TASK_VECTORS
    try:
        return await gateway.plan(principal, requested_loadout(body), asked.saved)
    except TaskVectorError as error:
        raise from_task_vector_error(error, param) from error


def _engine_body(body: Mapping[str, object], model: str) -> bytes:
    fields = {key: value for key, value in body.items() if key != TASK_VECTORS}
    fields["model"] = model
    return json.dumps(fields, separators=(",", ":")).encode()


def _engine_headers(request: Request, plan: Plan | None, ticket: Ticket) -> dict[str, str]:
    headers = {name: request.headers[name] for name in _PASSED_HEADERS if name in request.headers}
    headers["x-request-id"] = request.state.request_id
    if plan is not None:
        headers[LOADOUT_HEADER] = plan.loadout.canonical
        headers |= ticket.engine_headers
    return headers
