"""What surrounds every request that has an id: its span, and what is told when it has ended."""

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from outfitter.errors import ApiError
from outfitter.gateway import Gateway
from outfitter.observers import logs
from outfitter.observers.metrics import NONE

MAX_PATH = 200
_QUIET = ("/health/live", "/health/ready", "/metrics")
"""Asked so often that they are neither logged nor traced."""
_READING = ("GET", "HEAD", "OPTIONS")


class RequestContext:
    """ASGI middleware: puts each request's id into its log, and tells of it once it is answered."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve as an ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        tracing = scope["app"].state.gateway.tracing
        is_traced = tracing is not None and scope["path"] not in _QUIET
        span = tracing.begin(scope) if is_traced else None
        token = logs.REQUEST_ID.set(scope["state"]["request_id"])
        began, status = time.monotonic(), 500

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            route = getattr(scope.get("route"), "path", NONE)
            if is_traced:
                tracing.end(span, scope, route, status)
            _tell(scope, route, status, time.monotonic() - began)
            logs.REQUEST_ID.reset(token)


def tell_refused(
    gateway: Gateway, error: ApiError, client: str | None, request_id: str | None = None
) -> None:
    """Count and log a head that was answered before it was a request."""
    gateway.metrics.responded(NONE, error.status)
    token = logs.REQUEST_ID.set(request_id)
    told = {"client": client, "route": NONE, "status": error.status, "code": error.code}
    logs.access.info("request", extra={logs.FIELDS: told})
    logs.REQUEST_ID.reset(token)


def _tell(scope: Scope, route: str, status: int, seconds: float) -> None:
    scope["app"].state.gateway.metrics.responded(route, status)
    state, method = scope["state"], scope["method"]
    outcome = state.get("outcome")
    is_known = state.get("principal") is not None  # strangers change nothing
    is_change = is_known and outcome is None and route != NONE and method not in _READING
    log = logs.changes if is_change else logs.access
    if route in _QUIET or not log.isEnabledFor(logging.INFO):
        return
    client = scope.get("client")
    told: dict[str, object] = {"client": client[0] if client else None}
    told |= {"method": method, "route": route}
    if outcome is None:
        told |= {"path": scope["path"][:MAX_PATH], "status": status}
    told["seconds"] = round(seconds, 6)
    fields = logs.request_fields(outcome, state.get("principal"), told)
    log.info("change" if is_change else "request", extra={logs.FIELDS: fields})
