"""The response that is the engine's: awaited, streamed, and aborted with the client."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from outfitter.engine.relay import Relay, kept_headers
from outfitter.engine.rewrite import Identity, StreamRewriter, stream_error, translate_error
from outfitter.errors import ApiError, engine_died, unavailable

OUTFITTER_HEADER = "x-outfitter-loadout"


@dataclass(frozen=True)
class EngineRequest:
    """What the engine is asked."""

    path: str
    body: bytes
    headers: Mapping[str, str]


class RelayedResponse(Response):
    """Asks the engine and passes on what it says; a client that leaves takes its request along."""

    def __init__(self, relay: Relay, request: EngineRequest, identity: Identity) -> None:
        super().__init__()
        self._relay = relay
        self._request = request
        self._identity = identity
        self._is_streaming = False

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Answer as an ASGI application."""
        answer = asyncio.create_task(self._answer(send))
        departure = asyncio.create_task(_departure(receive))
        try:
            await asyncio.wait({answer, departure}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:  # only the server does this, when draining took too long
            await _cancel(answer)
            await self._say_goodbye(send)
        finally:
            await _cancel(departure)
            if not answer.done():
                await _cancel(answer)
        if not answer.cancelled():
            answer.result()

    async def _answer(self, send: Send) -> None:
        request = self._request
        async with self._relay.post(request.path, request.body, request.headers) as upstream:
            if upstream.status != 200:
                raise await self._error(upstream)
            headers = {**kept_headers(upstream), OUTFITTER_HEADER: self._identity.loadout}
            if upstream.content_type == "text/event-stream":
                await self._stream(upstream, headers, send)
            else:
                body = await upstream.read()
                if upstream.content_type == "application/json":
                    body = self._identity.complete(body)
                await send(_start({**headers, "content-length": str(len(body))}))
                await send(_part(body, more=False))

    async def _error(self, upstream: aiohttp.ClientResponse) -> ApiError:
        error = translate_error(upstream.status, await upstream.read(), self._identity)
        kept = {k: v for k, v in kept_headers(upstream).items() if k != "content-type"}
        error.headers = {**error.headers, **kept}
        return error

    async def _stream(
        self, upstream: aiohttp.ClientResponse, headers: Mapping[str, str], send: Send
    ) -> None:
        rewriter = StreamRewriter(self._identity)
        await send(_start({**headers, "cache-control": "no-cache"}))
        self._is_streaming = True
        try:
            async for chunk in upstream.content.iter_any():
                if lines := rewriter.feed(chunk):
                    await send(_part(lines, more=True))
            last = rewriter.finish()
        except (aiohttp.ClientError, ConnectionError):
            last = stream_error(engine_died(), self._identity.dialect)
        await send(_part(last, more=False))
        self._is_streaming = False

    async def _say_goodbye(self, send: Send) -> None:
        error = unavailable("the server is shutting down", "shutting_down")
        if not self._is_streaming:
            raise error
        await send(_part(stream_error(error, self._identity.dialect), more=False))


async def _departure(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait({task})


def _start(headers: Mapping[str, str]) -> dict[str, object]:
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http.response.start", "status": 200, "headers": raw}


def _part(body: bytes, *, more: bool) -> dict[str, object]:
    return {"type": "http.response.body", "body": body, "more_body": more}
