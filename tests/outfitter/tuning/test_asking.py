"""Questions to a gateway that is busy, ill, or says no."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from outfitter.client import GatewayRefused
from outfitter.tuning import asking
from outfitter.tuning.asking import Asker, NoAnswer, Terms, retry_after
from outfitter.tuning.prompts import Prompt

QUESTION = Prompt(({"role": "user", "content": "q"},), {"prompt": "q"})
GOOD = httpx.Response(200, json={"choices": [{"message": {"content": "yes"}}]})


def answers(*responses: httpx.Response | Exception) -> Callable[[httpx.Request], httpx.Response]:
    """One after the other, the last one for ever."""
    left = [*responses]

    def handle(request: httpx.Request) -> httpx.Response:
        response = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(response, Exception):
            raise response
        return httpx.Response(
            response.status_code, headers=response.headers, content=response.content
        )

    return handle


def ask(handle: Callable, count: int = 1, **terms: Any) -> tuple[list[Any], Asker]:
    async def run() -> tuple[list[Any], Asker]:
        transport = httpx.MockTransport(handle)
        async with Asker("http://x", {}, Terms("base", **terms), transport) as asker:
            asks = (asker.ask(QUESTION, {"a": 1.0}, seed=5) for _ in range(count))
            return await asyncio.gather(*asks, return_exceptions=True), asker

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backing off takes no time here."""
    monkeypatch.setattr(asking, "MAX_BACKOFF_S", 0.01)


@pytest.mark.parametrize("status", [429, 503])
def test_who_is_told_to_wait_waits(status: int) -> None:
    """As long as Retry-After says, as often as it is said; then it is answered."""
    busy = httpx.Response(
        status, headers={"retry-after": "0.15"}, json={"error": {"message": "no"}}
    )
    start = time.monotonic()
    found, asker = ask(answers(busy, busy, GOOD))
    assert found == ["yes"]
    assert time.monotonic() - start >= 0.3
    assert asker.num_retries == 2


def test_while_one_waits_no_other_is_sent() -> None:
    """The gateway is left alone until then."""
    times: list[float] = []

    def handle(request: httpx.Request) -> httpx.Response:
        times.append(time.monotonic())
        if len(times) == 1:
            return httpx.Response(429, headers={"retry-after": "0.2"})
        return httpx.Response(200, content=GOOD.content)

    found, _ = ask(handle, 3, concurrency=1)
    assert found == ["yes"] * 3
    assert times[1] - times[0] >= 0.2


def test_a_gateway_that_stays_busy_ends_the_search() -> None:
    """After the patience, with what it said."""
    busy = httpx.Response(429, headers={"retry-after": "0.05"}, json={"error": {"message": "full"}})
    ([error], _) = ask(answers(busy), patience_s=0.2)
    assert isinstance(error, GatewayRefused)
    assert "full" in str(error)


@pytest.mark.parametrize(
    "bad",
    [
        httpx.Response(500, json={"error": {"message": "ill"}}),
        httpx.Response(502),
        httpx.Response(200, content=b"no json"),
        httpx.Response(200, json={"choices": []}),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
    ],
)
def test_failures_are_tried_again(bad: httpx.Response | Exception) -> None:
    """Some times; then there is no answer, which is not an empty one."""
    assert ask(answers(bad, bad, GOOD))[0] == ["yes"]
    ([error], _) = ask(answers(bad), tries=3)
    assert isinstance(error, NoAnswer)
    assert "3 tries" in str(error)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_no_second_try_mends_ends_the_search(status: int) -> None:
    """At once, with the gateway's words."""
    no = httpx.Response(status, json={"error": {"message": "no vector b", "code": "x"}})
    ([error], asker) = ask(answers(no))
    assert isinstance(error, GatewayRefused)
    assert (error.status, asker.num_retries) == (status, 0)
    assert "no vector b" in str(error)


def test_no_more_than_allowed_are_asked_at_once() -> None:
    """Whatever there is to ask."""
    running = most = 0

    async def handle(request: httpx.Request) -> httpx.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return httpx.Response(200, content=GOOD.content)

    found, _ = ask(handle, 20, concurrency=4)
    assert len(found) == 20
    assert most == 4


def test_the_bodies_of_requests() -> None:
    """Chat and plain completions; a seed where answers are drawn."""
    seen: list[tuple[str, dict[str, Any]]] = []

    def handle(request: httpx.Request) -> httpx.Response:
        import json

        seen.append((request.url.path, json.loads(request.content)))
        choice = {"message": {"content": None}, "text": "t"}
        return httpx.Response(200, json={"choices": [choice]})

    assert ask(handle)[0] == [""]
    assert ask(handle, is_chat=False, temperature=0.5)[0] == ["t"]
    fields = {"model": "base", "max_tokens": 64, "task_vectors": {"a": 1.0}}
    chat = {**fields, "temperature": 0, "messages": [{"role": "user", "content": "q"}]}
    plain = {**fields, "temperature": 0.5, "seed": 5, "prompt": "q"}
    assert seen == [("/v1/chat/completions", chat), ("/v1/completions", plain)]


def test_retry_after_is_seconds_or_a_date() -> None:
    """What cannot be read is a second."""
    assert retry_after("7") == 7
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert retry_after(soon) == pytest.approx(30, abs=2)
    assert retry_after("99999") == asking.MAX_RETRY_AFTER_S
    assert [retry_after(text) for text in (None, "soon", "nan")] == [1, 1, 1]
