"""While a loadout is made ready, its request's body is kept and its client is watched."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from taskvectors.errors import PoolBusy
from taskvectors.spec import Loadout, LoadoutItem
from taskvectors.vllm_plugin import endpoint
from taskvectors.vllm_plugin.endpoint import Inbox, LoadoutMiddleware

LOADOUT = Loadout.build([LoadoutItem("a" * 64, 0.5)])
SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/v1/completions",
    "headers": [(endpoint.HEADER, LOADOUT.canonical.encode())],
}
GONE = {"type": "http.disconnect"}


def part(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


class Service:
    """Admits when `gate` is open; says what it holds."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.waiting = self.holding = 0
        self.error: Exception | None = None

    @contextlib.asynccontextmanager
    async def serve(self, _loadout: Loadout) -> AsyncIterator[None]:
        self.waiting += 1
        try:
            await self.gate.wait()
        finally:
            self.waiting -= 1
        if self.error is not None:
            raise self.error
        self.holding += 1
        try:
            yield
        finally:
            self.holding -= 1


class Client:
    """A connection: what arrives on it, what was answered, and what vLLM read."""

    def __init__(self) -> None:
        self.arriving: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[Any] = []
        self.read: list[dict[str, Any]] = []
        self.service = Service()
        self.middleware = LoadoutMiddleware(self._app)
        self.middleware._service = self.service  # type: ignore[assignment]

    def ask(self, *messages: dict[str, Any]) -> asyncio.Task[None]:
        for message in messages:
            self.arriving.put_nowait(message)
        return asyncio.create_task(self.middleware(SCOPE, self.arriving.get, self._send))

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    async def _app(self, _scope: Any, receive: Any, send: Any) -> None:
        self.read.append(await receive())
        while self.read[-1].get("more_body"):
            self.read.append(await receive())
        with contextlib.suppress(TimeoutError):  # as vLLM does, which watches the client, too
            await asyncio.wait_for(receive(), 0.001)
        assert self.service.holding == 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def run(test: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
    """With a client, in time, and with no task left behind."""

    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test(Client())
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(bounded())


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


BODIES = [
    [part(b"all")],
    [part(b"one", more=True), part(b"", more=True), part(b"two", more=True), part(b"")],
]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("ahead", [0, 1, 4])
def test_the_body_reaches_the_app_as_it_was_sent(body: list[Any], ahead: int) -> None:
    """In order and whole, whatever part of it came before the loadout was ready."""

    async def test(client: Client) -> None:
        answer = client.ask(*body[:ahead])
        await until(lambda: client.service.waiting == 1 and client.arriving.empty())
        client.service.gate.set()
        for message in body[ahead:]:
            await asyncio.sleep(0.002)
            client.arriving.put_nowait(message)
        await answer
        assert client.read == body
        assert client.sent[0]["status"] == 200
        assert client.service.holding == 0

    run(test)


def test_a_loadout_that_is_ready_waits_for_nothing() -> None:
    """Admitted at once, answered at once."""

    async def test(client: Client) -> None:
        client.service.gate.set()
        await client.ask(*BODIES[1])
        assert client.read == BODIES[1]

    run(test)


@pytest.mark.parametrize("body", [[], BODIES[0], BODIES[1], BODIES[1][:2]])
def test_a_client_that_leaves_takes_its_wait_along(body: list[Any]) -> None:
    """Before, in or after its body: nothing is held, asked or answered."""

    async def test(client: Client) -> None:
        answer = client.ask(*body)
        await until(lambda: client.service.waiting == 1 and client.arriving.empty())
        client.arriving.put_nowait(GONE)
        await answer
        assert (client.service.waiting, client.service.holding) == (0, 0)
        assert (client.read, client.sent) == ([], [])

    run(test)


def test_a_client_that_leaves_when_its_loadout_is_ready_is_left_to_the_app() -> None:
    """It hears of the departure itself, and nothing is held afterwards."""

    async def test(client: Client) -> None:
        client.service.gate.set()
        await client.ask(GONE)
        assert client.service.holding == 0
        assert client.read == [GONE]

    run(test)


def test_a_request_that_the_server_cancels_takes_its_wait_along() -> None:
    """As when the engine stops."""

    async def test(client: Client) -> None:
        answer = client.ask(*BODIES[0])
        await until(lambda: client.service.waiting == 1)
        answer.cancel()
        await asyncio.wait({answer})
        assert answer.cancelled()
        assert (client.service.waiting, client.service.holding) == (0, 0)

    run(test)


def test_a_refused_loadout_is_answered_while_the_body_is_still_coming() -> None:
    """And the body is not waited for."""

    async def test(client: Client) -> None:
        client.service.error = PoolBusy("later")
        answer = client.ask(BODIES[1][0])
        client.service.gate.set()
        await answer
        assert client.sent[0]["status"] == 503
        assert client.read == []

    run(test)


def test_a_connection_that_fails_is_not_hidden() -> None:
    """What the server raises is raised, and the wait ends."""

    async def test(client: Client) -> None:
        async def receive() -> Any:
            raise ConnectionResetError

        with pytest.raises(ConnectionResetError):
            await client.middleware(SCOPE, receive, client._send)
        assert (client.service.waiting, client.service.holding) == (0, 0)

    run(test)


def test_an_endless_body_is_not_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays with the server, and reaches the app in order all the same."""
    monkeypatch.setattr(endpoint, "MAX_AHEAD", 5)
    body = [*(part(b"abc", more=True) for _ in range(4)), part(b"end")]

    async def test(client: Client) -> None:
        answer = client.ask(*body)
        await until(lambda: client.service.waiting == 1 and client.arriving.qsize() == 3)
        await asyncio.sleep(0.01)
        assert client.arriving.qsize() == 3
        client.service.gate.set()
        await answer
        assert client.read == body

    run(test)


def test_a_message_is_given_once_to_one_of_two_readers() -> None:
    """A reader that is cancelled loses nothing."""

    async def test(client: Client) -> None:
        inbox = Inbox(client.arriving.get)
        gone, first, second = (asyncio.create_task(inbox.receive()) for _ in range(3))
        await asyncio.sleep(0)
        gone.cancel()
        for body in (b"1", b"2"):
            client.arriving.put_nowait(part(body))
        assert [(await first)["body"], (await second)["body"]] == [b"1", b"2"]
        await inbox.close()

    run(test)
