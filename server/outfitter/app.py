"""The HTTP application: routes, the lifespan of their dependencies, and OpenAI-shaped errors."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from types import ModuleType
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from outfitter.config import GatewayConfig
from outfitter.context import RequestContext, tell_refused
from outfitter.control.principal import Scope
from outfitter.control.surface import Dialect, dialect_of
from outfitter.deps import Counts, Needs
from outfitter.engine.rewrite import event_body
from outfitter.envelope import Application
from outfitter.errors import ApiError, from_task_vector_error
from outfitter.experiments.autopilot import steered
from outfitter.gateway import Hooks, open_gateway
from outfitter.protocol import REFUSED
from outfitter.routes import (
    access,
    audit,
    downloads,
    experiments,
    feedback,
    health,
    interference,
    loadouts,
    metrics,
    models,
    openai,
    promotions,
    pulls,
    results,
    task_vectors,
    tenants,
    uploads,
    usage,
)
from taskvectors.errors import TaskVectorError

_INFER, _READ = (Scope.INFER,), (Scope.INFER, Scope.PUBLISH)
_PUBLISH, _OPERATE, _ADMIN = (Scope.PUBLISH,), (Scope.OPERATE,), (Scope.ADMIN,)
_ANY = tuple(Scope)
_ROUTES = (
    (health, None),  # for whatever watches the process: it tells nothing of anybody
    (metrics, Needs(_OPERATE, _OPERATE)),
    (models, Needs(_READ, _READ)),
    (openai, Needs(_INFER, _INFER)),
    (access, Needs(_READ, _PUBLISH)),
    (loadouts, Needs(_READ, _PUBLISH)),
    (results, Needs(_PUBLISH, _PUBLISH)),  # before those that take any path
    (experiments, Needs(_READ, _PUBLISH)),
    (promotions, Needs(_OPERATE, _OPERATE)),
    (tenants, Needs(_ADMIN, _ADMIN)),
    (audit, Needs(_ADMIN, _ADMIN)),
    (uploads, Needs(_PUBLISH, _PUBLISH)),
    (usage, Needs(_ANY, _ANY)),
    (feedback, Needs(_INFER, _INFER)),
    (interference, Needs(_READ, _READ)),
    (pulls, Needs(_PUBLISH, _PUBLISH)),
    (downloads, Needs(_READ, _READ)),
    (task_vectors, Needs(_READ, _PUBLISH)),  # takes any path below its own
)

_READS, _COMPARISONS = Counts("reads_per_minute"), Counts("comparisons_per_minute", ("POST",))
_UNCOUNTED = (health, metrics, openai)
"""What watches the server, and what has limits of its own."""


def _dependencies(routes: ModuleType, needs: Needs | None) -> list[Any]:
    counts = _COMPARISONS if routes is interference else _READS
    wanted = (needs, None if routes in _UNCOUNTED else counts)
    return [Depends(one) for one in wanted if one is not None]


def create_app(config: GatewayConfig, hooks: Hooks | None = None) -> FastAPI:
    """The gateway as an ASGI application; its engine starts and stops with the lifespan."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, object]]:
        async with open_gateway(config, hooks or Hooks()) as gateway:
            app.state.gateway = gateway
            async with steered(gateway):
                yield {REFUSED: partial(tell_refused, gateway)}

    app = Application(
        lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.add_middleware(RequestContext)
    for routes, needs in _ROUTES:
        app.include_router(routes.router, dependencies=_dependencies(routes, needs))
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(TaskVectorError, _task_vector_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(Exception, _unexpected)
    return app


def error_response(error: ApiError, request: Request | None = None) -> Response:
    """An error as the client gets it; plain ASCII, so that no text can break it.

    request: the way its API writes errors; OpenAI's without one.
    """
    is_anthropic = request is not None and dialect_of(request.url.path) is Dialect.ANTHROPIC
    content = json.dumps(event_body(error, Dialect.ANTHROPIC) if is_anthropic else error.body)
    return Response(content, error.status, dict(error.headers), media_type="application/json")


def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error, request)


def _task_vector_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TaskVectorError)
    return error_response(from_task_vector_error(error), request)


def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:200]}"
    messages = {404: f"unknown route: {where}", 405: f"method not allowed: {where}"}
    codes = {404: "unknown_route", 405: "method_not_allowed"}
    status = error.status_code
    message = messages.get(status, str(error.detail))
    headers = error.headers or {}
    return error_response(ApiError(status, message, codes.get(status), headers=headers))


def _validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return error_response(ApiError(400, f"{where}: {first['msg']}", "invalid_parameter", where))


def _unexpected(_: Request, __: Exception) -> Response:
    message = "an error of the gateway itself; its log says more"
    return error_response(ApiError(500, message, "internal_error"))
