"""The response that is the engine's: awaited, streamed, and aborted with the client."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from outfitter.control.outcome import CLIENT_LEFT
from outfitter.engine.hidden import HiddenUsage
from outfitter.engine.meter import StreamMeter, note_usage, usage_of
from outfitter.engine.relay import Relay, kept_headers
from outfitter.engine.rewrite import Identity, StreamRewriter, stream_error, translate_error
from outfitter.errors import ApiError, engine_died, unavailable
from outfitter.routes.observed import Observed

OUTFITTER_HEADER = "x-outfitter-loadout"
RETRY_S = "5"
"""When to come back, where an engine that is busy does not say."""
_LINE_END = b"\n"
"""Of the last event, should it have been lost; an empty line more says nothing."""


@dataclass(frozen=True)
class EngineRequest:
    """What the engine is asked.

    hides_usage: a stream's usage was asked for by the gateway, and not by the client.
    """

    path: str
    body: bytes
    headers: Mapping[str, str]
    hides_usage: bool = False


class RelayedResponse(Response):
    """Asks the engine and passes on what it says; a client that leaves takes its request along.

    However that ends, `observed` is told so.
    """

    def __init__(
        self, relay: Relay, request: EngineRequest, identity: Identity, observed: Observed
    ) -> None:
        super().__init__()
        self._relay = relay
        self._request = request
        self._identity = identity
        self._observed = observed
        self._outcome = observed.outcome
        self._outcome.model, self._outcome.loadout = identity.model, identity.loadout
        self._outcome.saved_model = identity.saved_model
        self._is_streaming = False
        self._meter = StreamMeter()
        self._recording = observed.recording()

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Answer as an ASGI application."""
        with self._observed.refusals():
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
                try:
                    answer.result()
                except ApiError as error:
                    await self._settle(error.status)
                    raise
        self._observed.end(CLIENT_LEFT)

    async def _answer(self, send: Send) -> None:
        request = self._request
        async with self._relay.post(request.path, request.body, request.headers) as upstream:
            if upstream.status != 200:
                raise await self._error(upstream)
            own = {OUTFITTER_HEADER: self._identity.loadout, **self._observed.headers}
            headers = {**kept_headers(upstream), **own}
            if upstream.content_type == "text/event-stream":
                with self._observed.streaming():
                    await self._stream(upstream, headers, send)
            else:
                await self._whole(upstream, headers, send)

    async def _error(self, upstream: aiohttp.ClientResponse) -> ApiError:
        error = translate_error(upstream.status, await upstream.read(), self._identity)
        kept = {k: v for k, v in kept_headers(upstream).items() if k != "content-type"}
        pause = {"retry-after": RETRY_S} if error.status in (429, 503) else {}
        error.headers = {**pause, **error.headers, **kept}
        return error

    async def _whole(
        self, upstream: aiohttp.ClientResponse, headers: Mapping[str, str], send: Send
    ) -> None:
        body = await upstream.read()
        if upstream.content_type == "application/json":
            if (usage := usage_of(body)) is not None:
                note_usage(self._outcome, usage)
            if self._recording is not None:
                self._recording.whole(body)
            body = self._identity.complete(body)
        await self._settle(200)
        await send(_start({**headers, "content-length": str(len(body))}))
        await send(_part(body, more=False))
        self._observed.end(200)

    async def _stream(
        self, upstream: aiohttp.ClientResponse, headers: Mapping[str, str], send: Send
    ) -> None:
        self._outcome.is_stream = True
        await send(_start({**headers, "cache-control": "no-cache"}))
        self._is_streaming = True
        try:
            status, code, last = await self._pass_on(upstream, send)
        finally:
            self._meter.tell(self._outcome)
        await self._settle(status)
        await send(_part(last, more=False))
        self._is_streaming = False
        self._observed.end(status, code)

    async def _pass_on(
        self, upstream: aiohttp.ClientResponse, send: Send
    ) -> tuple[int, str | None, bytes]:
        """The lines of a stream as they come; returns its status and code, and its last bytes.

        Whatever breaks off after the engine said that this was all is not the client's business.
        """
        meter, rewriter = self._meter, StreamRewriter(self._identity)
        hidden = HiddenUsage(self._relay.fingerprint) if self._request.hides_usage else None
        try:
            async for chunk in upstream.content.iter_any():
                lines = rewriter.feed(chunk)
                meter.feed(lines)
                if self._recording is not None and lines:
                    await self._record(lines)
                if hidden is not None:
                    lines = hidden.feed(lines)
                if lines:
                    await send(_part(lines, more=True))
        except (aiohttp.ClientError, ConnectionError):
            if not meter.has_ended:
                died = engine_died()
                last = stream_error(died, self._identity.dialect)
                return died.status, died.code, _released(hidden) + last
            return self._status, None, _LINE_END
        return self._status, None, _released(hidden) + rewriter.finish()

    async def _record(self, lines: bytes) -> None:
        """Show an experiment what is passed on; the end goes out when the request is recorded."""
        assert self._recording is not None
        self._recording.feed(lines)
        if self._meter.has_ended:
            self._meter.tell(self._outcome)
            await self._settle(self._status)

    async def _settle(self, status: int) -> None:
        """To be done before the last bytes of an answer are sent."""
        if self._recording is not None:
            await self._recording.settle(status)

    @property
    def _status(self) -> int:
        """Of a stream that the engine has ended."""
        return 500 if self._meter.has_failed else 200

    async def _say_goodbye(self, send: Send) -> None:
        error = unavailable("the server is shutting down", "shutting_down")
        if not self._is_streaming:
            raise error
        if self._meter.has_ended:
            self._observed.end(self._status)
            await send(_part(_LINE_END, more=False))
            return
        self._observed.end(error.status, error.code)
        await send(_part(stream_error(error, self._identity.dialect), more=False))


async def _departure(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait({task})


def _released(hidden: HiddenUsage | None) -> bytes:
    return b"" if hidden is None else hidden.release()


def _start(headers: Mapping[str, str]) -> dict[str, object]:
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http.response.start", "status": 200, "headers": raw}


def _part(body: bytes, *, more: bool) -> dict[str, object]:
    return {"type": "http.response.body", "body": body, "more_body": more}
