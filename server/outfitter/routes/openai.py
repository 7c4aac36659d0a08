"""The routes of OpenAI's API, vLLM's and Anthropic's: checked, resolved, and relayed."""

from collections.abc import Awaitable, Callable, Mapping

from fastapi import APIRouter, Request
from starlette.responses import Response

from outfitter.control.estimate import prompt_tokens
from outfitter.control.experiments.choice import (
    Choice,
    check_no_vectors,
    check_not_forced,
    choose,
    forced_variant,
)
from outfitter.control.experiments.units import unit_of
from outfitter.control.fields import TASK_VECTORS, check_fields
from outfitter.control.principal import Principal
from outfitter.control.resolve import Plan, model_of, parse_body, requested_loadout
from outfitter.control.salting import salted
from outfitter.control.saved import Asked
from outfitter.control.surface import NOT_OFFERED, ROUTES, Route
from outfitter.deps import GatewayDep, PrincipalDep
from outfitter.engine.rewrite import Identity
from outfitter.errors import ApiError, from_task_vector_error
from outfitter.gateway import Gateway
from outfitter.routes.body import read_body
from outfitter.routes.documented import relayed_body
from outfitter.routes.mirrored import Mirror
from outfitter.routes.observed import Observed, observe
from outfitter.routes.question import Question
from outfitter.routes.relayed import RelayedResponse
from taskvectors.errors import TaskVectorError

router = APIRouter()

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
    raw = await read_body(request, gateway.config.max_body_bytes)
    body = await gateway.aside.run(len(raw), parse_body, raw)
    asked = await _asked(route, gateway, principal, body)
    outcome.model, outcome.saved_model = asked.name, asked.saved_model
    outcome.is_stream = body.get("stream") is True
    choice = _chosen(route, request, principal, body, asked)
    relay = gateway.ready_relay()
    if route.is_tokens and TASK_VECTORS in body:
        message = "task_vectors change no tokens: leave them out"
        raise ApiError(400, message, "unsupported_parameter", TASK_VECTORS)
    known = gateway.known_fields.get(route.target)
    check_fields(body, known)
    if not route.is_tokens:  # which reads no cache
        body = salted(body, principal, None if known is None else known.top)
    plan = await _plan(gateway, observed, body, asked, choice)
    question = Question.of(route, request, body, gateway.config.name)
    estimate = 0 if route.is_tokens else await gateway.aside.run(len(raw), prompt_tokens, body)
    identity = Identity(
        asked.name,
        plan.label,
        plan.task_vectors,
        route.dialect,
        outcome.saved_model,
        None if choice is None else choice.described,
    )
    async with gateway.quotas.admitted(principal, request) as ticket:
        outcome.charged = ticket.charged
        gateway.quotas.sent(outcome, estimate)
        question = question.admitted(ticket.engine_headers)
        if choice is not None:
            outcome.exposure = choice.exposure
            observed.then = Mirror(gateway, choice, question, len(raw))
        engine_request = await gateway.aside.run(len(raw), question.served_by, plan.loadout)
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


def _chosen(
    route: Route,
    request: Request,
    principal: Principal,
    body: Mapping[str, object],
    asked: Asked,
) -> Choice | None:
    """The variant that serves; None where the model is no experiment, or none is needed."""
    experiment = asked.experiment
    if experiment is None or route.is_tokens:
        check_not_forced(request.headers, asked.name, is_tokens=route.is_tokens)
        return None
    check_no_vectors(body, experiment)
    forced = forced_variant(request.headers, principal)
    unit = unit_of(experiment.definition.unit, body, request.headers, principal)
    return choose(experiment, unit, forced)


async def _plan(
    gateway: Gateway,
    observed: Observed,
    body: dict[str, object],
    asked: Asked,
    choice: Choice | None,
) -> Plan:
    """How it is served. A variant that cannot be is counted; a request without a turn is not."""
    outcome = observed.outcome
    param = "model" if body.get(TASK_VECTORS) is None else TASK_VECTORS
    try:
        if choice is None:
            return await gateway.plan(outcome.principal, requested_loadout(body), asked.saved)
        outcome.exposure = choice.exposure
        pin = await gateway.pin(choice.experiment, choice.variant)
    except TaskVectorError as error:
        raise from_task_vector_error(error, param) from error
    outcome.exposure = choice.waiting
    outcome.saved_model = gateway.variants.saved_model(pin)
    return pin.plan
