"""Around every request: its id, which every answer carries, and the bounds of its headers."""

import json
import re
import uuid

from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from outfitter.context import tell_refused
from outfitter.errors import ApiError

MAX_HEADER_BYTES = 32 * 2**10
"""Of all names and values together."""
MAX_TARGET_BYTES = 8 * 2**10
"""Of path and query."""
REQUEST_ID = b"x-request-id"
_SANE = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class Application(FastAPI):
    """FastAPI, with an `x-request-id` on every answer, also on those of its own errors.

    A client's id is taken if it has up to 128 letters, digits and `._:-`; any other request is
    given one. It stands in the request's headers, and routes find it as `request.state.request_id`.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as an ASGI application."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id.decode()
        given = [pair for pair in scope["headers"] if pair[0] != REQUEST_ID]
        scope["headers"] = [*given, (REQUEST_ID, request_id)]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                others = [pair for pair in message.get("headers", ()) if pair[0] != REQUEST_ID]
                message["headers"] = [*others, (REQUEST_ID, request_id)]
            await send(message)

        if (error := _too_large(scope)) is not None:
            client = scope.get("client")
            told = client[0] if client else None
            tell_refused(self.state.gateway, error, told, request_id.decode())
            await _refuse(error, send_with_id)
        else:
            await super().__call__(scope, receive, send_with_id)


def _request_id(scope: Scope) -> bytes:
    given = [value for name, value in scope["headers"] if name == REQUEST_ID]
    if len(given) == 1 and _SANE.fullmatch(given[0]):
        return bytes(given[0])
    return uuid.uuid4().hex.encode()


def _too_large(scope: Scope) -> ApiError | None:
    target = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
    if target > MAX_TARGET_BYTES:
        message = f"path and query have {target} bytes; at most {MAX_TARGET_BYTES} are read"
        return ApiError(414, message, "uri_too_long")
    size = sum(len(name) + len(value) for name, value in scope["headers"])
    if size > MAX_HEADER_BYTES:
        message = f"the headers have {size} bytes; at most {MAX_HEADER_BYTES} are read"
        return ApiError(431, message, "headers_too_large")
    return None


async def _refuse(error: ApiError, send: Send) -> None:
    body = json.dumps(error.body).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
