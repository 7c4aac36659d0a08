"""The HTTP side in vLLM's API server: a request that carries a loadout is admitted, then served.

The request names the loadout's `engine_name` as its model and carries the canonical loadout in
the header `x-taskvectors-loadout`, and its tenant in the headers of tenant.py, if it has one.
Routes of our own (control.py) are answered here. Any other request passes untouched.
"""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from taskvectors.errors import (
    BaseMismatch,
    EngineUnavailable,
    InvalidFile,
    InvalidLoadout,
    PoolBusy,
    PoolTooSmall,
    PromotionTooLarge,
    StoreFull,
    TaskVectorError,
    TierUnavailable,
    VectorLoadFailed,
    VectorNotFound,
)
from taskvectors.spec import Loadout
from taskvectors.vllm_plugin import control
from taskvectors.vllm_plugin.service import LoadoutService
from taskvectors.vllm_plugin.tenant import ASKING, tenant_of

HEADER = b"x-taskvectors-loadout"
LINGER_S = 2.0
"""How long a loadout is held after its client left: its request may run for another step."""
MAX_AHEAD = 256 << 20
"""Bytes of a body that are read before its request is admitted; the rest stays with the server."""
STATUS: tuple[tuple[type[TaskVectorError], int, str], ...] = (
    (InvalidLoadout, 400, "invalid_loadout"),
    (VectorNotFound, 404, "task_vector_not_found"),
    (BaseMismatch, 422, "base_mismatch"),
    (PoolTooSmall, 400, "loadout_too_large"),
    (PoolBusy, 503, "pool_busy"),
    (EngineUnavailable, 503, "engine_unavailable"),
    (TierUnavailable, 503, "store_unavailable"),
    (StoreFull, 503, "store_full"),
    (PromotionTooLarge, 507, "promotion_too_large"),
    (VectorLoadFailed, 422, "task_vector_not_servable"),
    (InvalidFile, 422, "invalid_file"),
    (TaskVectorError, 500, "internal_error"),
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class LoadoutEndpoint:
    """vLLM's endpoint plugin; it only puts the middleware in front of vLLM's own routes."""

    name = "taskvectors"
    required_tasks = None

    def attach_router(self, app: Any) -> None:
        """Add the middleware."""
        app.add_middleware(LoadoutMiddleware)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Nothing: the middleware builds what it needs with the first loadout."""


class LoadoutMiddleware:
    """ASGI middleware around vLLM's application."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._service: LoadoutService | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit the loadout of the header, then let vLLM answer."""
        if scope["type"] == "http" and (route := control.find(scope["method"], scope["path"])):
            await self._answer(route, scope, receive, send)
            return
        headers = scope.get("headers", ()) if scope["type"] == "http" else ()
        text = next((value for name, value in headers if name == HEADER), None)
        if text is None:
            await self._app(scope, receive, send)
            return
        inbox = Inbox(receive)
        try:
            await self._serve(text.decode("latin-1"), scope, inbox, send)
        finally:
            await inbox.close()

    def _of(self, scope: Scope) -> LoadoutService:
        """The service of vLLM's application. Raises UnsupportedEngine."""
        if self._service is None:
            self._service = LoadoutService(scope["app"].state)
        return self._service

    async def _answer(
        self, route: control.Route, scope: Scope, receive: Receive, send: Send
    ) -> None:
        try:
            response = JSONResponse(await route(self._of(scope), Request(scope, receive)))
        except TaskVectorError as error:
            await _send_error(send, error)
            return
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    async def _serve(self, text: str, scope: Scope, inbox: "Inbox", send: Send) -> None:
        async with contextlib.AsyncExitStack() as stack:
            try:
                ASKING.set(tenant_of(scope["headers"]))
                context = self._of(scope).serve(Loadout.from_canonical(text))
                if not await _enter_unless_left(stack, context, inbox):
                    return
            except TaskVectorError as error:
                await _send_error(send, error)
                return
            exchange = Exchange(send)
            try:
                await self._app(scope, inbox.receive, exchange.send)
            finally:
                if not exchange.is_complete:  # vLLM aborts the request a little later
                    _release_later(stack.pop_all())


class Inbox:
    """What the client sends: read ahead to notice its departure, then replayed in order."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._read: deque[Message] = deque()
        self._next: asyncio.Future[Message] | None = None

    async def departure(self) -> None:
        """Returns when the client has left, as far as that can be seen behind MAX_AHEAD bytes."""
        num_bytes = 0
        while num_bytes < MAX_AHEAD:
            message = await self._arrival()
            if message["type"] == "http.disconnect":
                return
            self._read.append(message)
            num_bytes += len(message.get("body", b""))
        await asyncio.Event().wait()

    async def receive(self) -> Message:
        """The next message, as if nothing had been read ahead."""
        return self._read.popleft() if self._read else await self._arrival()

    async def close(self) -> None:
        """Give up the message that is waited for, if any."""
        if self._next is not None:
            await _cancel(self._next)

    async def _arrival(self) -> Message:
        """The next message of the server; whoever is cancelled here leaves it to the next."""
        while True:
            if self._next is None:
                self._next = asyncio.ensure_future(self._receive())
            arriving = self._next
            await asyncio.wait({arriving})
            if self._next is arriving:  # else another took it
                self._next = None
                return arriving.result()


async def _enter_unless_left(
    stack: contextlib.AsyncExitStack,
    context: contextlib.AbstractAsyncContextManager[None],
    inbox: Inbox,
) -> bool:
    """Enter `context`, which may take minutes; False as soon as the client has left."""
    entering = asyncio.create_task(stack.enter_async_context(context))
    departure = asyncio.create_task(inbox.departure())
    try:
        await asyncio.wait({entering, departure}, return_when=asyncio.FIRST_COMPLETED)
        has_left = departure.done()
    finally:
        await _cancel(entering, departure)
    (departure if has_left else entering).result()
    return not has_left


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until they have ended, however that is."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Exchange:
    """Notices whether an answer was sent to its end."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.is_complete = False

    async def send(self, message: Message) -> None:
        """Send the next part of the answer."""
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.is_complete = True


def _release_later(stack: contextlib.AsyncExitStack) -> None:
    """Let go of a loadout once the engine has surely dropped its aborted request."""

    async def release() -> None:
        await asyncio.sleep(LINGER_S)
        await stack.aclose()

    task = asyncio.create_task(release())
    _releases.add(task)
    task.add_done_callback(_releases.discard)


_releases: set[asyncio.Task[None]] = set()


async def _send_error(send: Send, error: TaskVectorError) -> None:
    status, code = next((s, c) for kind, s, c in STATUS if isinstance(error, kind))
    kind = "invalid_request_error" if status < 500 else "server_error"
    fields = {"message": str(error), "type": kind, "param": "task_vectors", "code": code}
    headers = [(b"content-type", b"application/json")]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": fields}).encode()})
