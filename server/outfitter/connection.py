"""uvicorn's HTTP/1.1 connections, within bounds: headers have a size and a time to arrive."""

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from outfitter.errors import ApiError

MAX_HEADER_BYTES = 64 * 2**10
"""Of the first line and all headers of a request."""
HEADER_S = 15.0
"""How long they may take, from the connection or from the first byte after a former request."""


class BoundedProtocol(HttpToolsProtocol):
    """A connection that is refused, in OpenAI's shape, when its headers are too much or too slow.

    A client that connects and says nothing is left without a word.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_bytes = 0
        self._unparsed_bytes = 0
        self._awaits_headers = True
        self._has_begun = False
        self._is_too_large = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for headers."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, which holds what it gets until something of it is complete."""
        if self._awaits_headers and self._timer is None:
            self._start_timer()
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self._unparsed_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self._refuse(_too_large())

    def on_message_begin(self) -> None:
        """Count from here."""
        super().on_message_begin()
        self._has_begun, self._header_bytes = True, 0

    def on_url(self, url: bytes) -> None:
        """Count it."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count it, also one that follows a body."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Let the request be served; its body has bounds of its own."""
        self._awaits_headers = False
        self._stop_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass it on."""
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Whatever comes next are headers."""
        self._unparsed_bytes = 0
        super().on_message_complete()
        self._awaits_headers, self._has_begun = True, False

    def send_400_response(self, msg: str) -> None:
        """What the parser does not take."""
        self._refuse(_too_large() if self._is_too_large else ApiError(400, msg, "invalid_http"))

    def _count(self, size: int) -> None:
        self._unparsed_bytes = 0
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            self._is_too_large = True
            raise ValueError("the headers are too large")  # ends in `send_400_response`

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(HEADER_S, self._give_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._start_timer()  # what waits is the next request, and this one is being answered
        elif self._has_begun:
            message = f"the headers took longer than {HEADER_S:g} s; send the request again"
            self._refuse(ApiError(408, message, "headers_too_slow"))
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Say why and close; within an answer nothing can be said."""
        cycle = self.cycle
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.close()
            return
        body = json.dumps(error.body).encode()
        head = (
            f"HTTP/1.1 {error.status} {_PHRASES[error.status]}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


_PHRASES = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


def _too_large() -> ApiError:
    message = f"the first line and the headers exceed {MAX_HEADER_BYTES} bytes"
    return ApiError(431, message, "headers_too_large")
