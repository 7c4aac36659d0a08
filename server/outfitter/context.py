"""What surrounds every request: its id, its span, and what is told when it has ended."""

import logging
import re
import time
import uuid
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from outfitter.observers import logs
from outfitter.observers.metrics import NONE

REQUEST_ID_HEADER = b"x-request-id"
MAX_PATH = 200
_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_QUIET = ("/health/live", "/health/ready", "/metrics")
"""Asked so often that they are neither logged nor traced."""
_READING = ("GET", "HEAD", "OPTIONS")


class RequestContext:
    """ASGI middleware: gives each request an id, and tells of it once it has been answered.

    The id is the client's own if that is one; the engine and the client are told it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve as an ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _take_id(scope)
        tracing = scope["app"].state.gateway.tracing
        is_traced = tracing is not None and scope["path"] not in _QUIET
        span = tracing.begin(scope) if is_traced else None
        token = logs.REQUEST_ID.set(request_id.decode())
        began, status = time.monotonic(), 500

        async def tell_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                add_request_id(message, request_id)
            await send(message)

        try:
            await self._app(scope, receive, tell_id)
        finally:
            route = getattr(scope.get("route"), "path", NONE)
            if is_traced:
                tracing.end(span, scope, route, status)
            _tell(scope, route, status, time.monotonic() - began)
            logs.REQUEST_ID.reset(token)


def add_request_id(message: MutableMapping[str, Any], request_id: bytes) -> None:
    """Say the id in an answer, unless it is said already."""
    headers = list(message.get("headers", ()))
    if not any(name.lower() == REQUEST_ID_HEADER for name, _ in headers):
        message["headers"] = [*headers, (REQUEST_ID_HEADER, request_id)]


def _take_id(scope: Scope) -> bytes:
    """The id of a request, which afterwards stands in its headers and its state."""
    given = [value for name, value in scope["headers"] if name == REQUEST_ID_HEADER]
    is_fine = len(given) == 1 and _ID.fullmatch(given[0])
    request_id: bytes = given[0] if is_fine else f"req-{uuid.uuid4().hex}".encode()
    if not is_fine:
        others = [(name, value) for name, value in scope["headers"] if name != REQUEST_ID_HEADER]
        scope["headers"] = [*others, (REQUEST_ID_HEADER, request_id)]
    scope.setdefault("state", {})["request_id"] = request_id.decode()
    return request_id


def _tell(scope: Scope, route: str, status: int, seconds: float) -> None:
    scope["app"].state.gateway.metrics.responded(route, status)
    state, method = scope["state"], scope["method"]
    outcome = state.get("outcome")
    is_change = outcome is None and route != NONE and method not in _READING
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
