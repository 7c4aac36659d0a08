"""HTTP as uvicorn speaks it, with bounds where it has none: the head of a request.

uvicorn keeps any number of header bytes, and waits for them for ever. What cannot be read at all is
refused here, before there is a request: in OpenAI's shape, without an id. Where the application's
lifespan has a state of the name `REFUSED`, it is told of that.
"""

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from outfitter.errors import ApiError

REFUSED = "refused"
"""Of the application: a function of the error and the client's address."""
MAX_HEAD_BYTES = 64 * 2**10
"""Of an unfinished request line with headers; whole ones have closer bounds in envelope.py."""
HEAD_S = 30.0
"""How long a request's head may take, from the connection or its first byte."""
_REASONS = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    _is_in_head = True
    _num_unparsed_bytes = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client is there, and has some time to say what it wants."""
        super().connection_made(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has left."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes came; the parser holds them until something of them is complete."""
        if self._is_in_head and self._timer is None:
            self._timer = self.loop.call_later(HEAD_S, self._time_out)
        self._num_unparsed_bytes += len(data)
        super().data_received(data)
        if self._num_unparsed_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            message = f"the headers have more than {MAX_HEAD_BYTES} bytes"
            self._refuse(ApiError(431, message, "headers_too_large"))

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._is_in_head, self._num_unparsed_bytes = False, 0
        self._stop_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of the body is there, which has bounds of its own."""
        self._num_unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The body is whole; what follows is another head."""
        self._is_in_head, self._num_unparsed_bytes = True, 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(ApiError(400, msg, "invalid_http"))

    def _begin_head(self) -> None:
        self._is_in_head, self._num_unparsed_bytes = True, 0
        self._timer = self.loop.call_later(HEAD_S, self._time_out)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        self._timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._timer = self.loop.call_later(HEAD_S, self._time_out)
            return  # what waits is the next request, and this one is being answered
        message = f"the headers were not whole after {HEAD_S:g} s; send them again"
        self._refuse(ApiError(408, message, "headers_too_slow"))

    def _refuse(self, error: ApiError) -> None:
        """Answer and hang up; within an answer nothing can be said."""
        cycle = self.cycle
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.close()
            return
        if (tell := self.app_state.get(REFUSED)) is not None:
            tell(error, self.client[0] if self.client else None)
        body = json.dumps(error.body).encode()
        head = (
            f"HTTP/1.1 {error.status} {_REASONS[error.status]}\r\n"
            "content-type: application/json\r\nconnection: close\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
