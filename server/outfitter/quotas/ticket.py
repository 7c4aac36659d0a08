"""The ticket of a request that was admitted: given back when its answer has ended."""

from collections.abc import Callable, Mapping

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from outfitter.errors import ApiError


class Ticket:
    """headers: for the client. engine_headers: for the engine, beside those of the loadout.

    charged: tokens that the request is taken for until it has ended.
    """

    def __init__(
        self,
        headers: Mapping[str, str],
        engine_headers: Mapping[str, str],
        charged: float,
        give_back: Callable[[], None],
    ) -> None:
        self.headers = headers
        self.engine_headers = engine_headers
        self.charged = charged
        self.is_carried = False
        self._give_back: Callable[[], None] | None = give_back

    def carry(self, response: Response) -> Response:
        """`response` with the client's headers; the ticket is given back when it has ended."""
        self.is_carried = True
        return _Carrying(self, response)

    def close(self) -> None:
        """Give it back; once."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()


class _Carrying(Response):
    """A response that has a ticket."""

    def __init__(self, ticket: Ticket, response: Response) -> None:
        super().__init__()
        self._ticket = ticket
        self._response = response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as an ASGI application."""
        more = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in self._ticket.headers.items()]

        async def send_more(message: Message) -> None:
            if more and message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        try:
            await self._response(scope, receive, send_more)
        except ApiError as error:
            error.headers = {**self._ticket.headers, **error.headers}
            raise
        finally:
            self._ticket.close()
