"""Every relayed request has one outcome, however it ends."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from outfitter.control.outcome import Outcome
from tests.outfitter import fake_streams
from tests.outfitter.harness import Running, make_config, make_vector, push, running, wait_for

DONE = b"data: [DONE]\n\n"


class Watched:
    """A gateway of one's own, and the outcomes that it told."""

    def __init__(self, gateway: Running) -> None:
        self.gateway = gateway
        self.outcomes: list[Outcome] = []
        gateway.inner.observers += [self._fail, self.outcomes.append]

    @staticmethod
    def _fail(outcome: Outcome) -> None:
        raise RuntimeError("an observer that fails")

    def ask(self, prompt: str, timeout: float = 30, **fields: object) -> httpx.Response | None:
        body = {"model": "base-model", "prompt": prompt, **fields}
        url = f"{self.gateway.url}/v1/completions"
        try:
            return httpx.post(url, json=body, timeout=timeout)
        except (httpx.ReadTimeout, httpx.RemoteProtocolError):
            return None

    def outcome(self) -> Outcome:
        """The one outcome since the last call."""
        wait_for(lambda: bool(self.outcomes))
        time.sleep(0.1)  # for another one, which there must not be
        [found] = self.outcomes
        self.outcomes.clear()
        assert found.ended is not None
        assert found.ended >= found.began
        in_flight = self.gateway.inner.in_flight
        assert (in_flight.requests, in_flight.streams) == (0, 0)
        return found


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    with running(make_config(tmp_path)) as gateway:
        yield Watched(gateway.wait_ready())


def test_an_answer_and_a_stream(watched: Watched, tmp_path: Path) -> None:
    """The engine's usage, the times, and what served it."""
    watched.ask("some three words")
    told = watched.outcome()
    assert (told.status, told.route, told.model) == (200, "/v1/completions", "base-model")
    assert (told.prompt_tokens, told.cached_tokens, told.completion_tokens) == (2, 1, 3)
    assert (told.loadout, told.is_stream, told.first_token) == ("base", False, None)
    with watched.gateway.client as client:
        push(client, make_vector(tmp_path / "v"), "skill")
    response = watched.ask("some words", stream=True, task_vectors={"skill": 1})
    told = watched.outcome()
    assert (told.status, told.is_stream, told.num_events) == (200, True, 3)
    assert told.loadout == response.headers["x-outfitter-loadout"]
    assert (told.prompt_tokens, told.cached_tokens, told.completion_tokens) == (2, 1, 3)
    assert told.began < told.first_token <= told.last_token <= told.ended


@pytest.mark.parametrize(
    ("path", "asking"),
    [
        ("/v1/completions", {"prompt": "p"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "p"}]}),
    ],
)
def test_only_who_asks_for_usage_sees_it(watched: Watched, path: str, asking: dict) -> None:
    """The engine is always asked, and the gateway told."""
    body = {"model": "base-model", "stream": True, **asking}
    with watched.gateway.client as client:
        plain = client.post(path, json=body).text
        asked = client.post(path, json={**body, "stream_options": {"include_usage": True}}).text
    for text, options in ((plain, {}), (asked, {"include_usage": True})):
        whole = {"model": "base-model", "stream_options": options}
        assert text.encode() == b"".join(fake_streams.events(path, whole, "p")) + DONE
    wait_for(lambda: [told.completion_tokens for told in watched.outcomes] == [3, 3])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": "p"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "p"}], "max_tokens": 9}),
    ],
)
def test_other_apis_are_counted_too(watched: Watched, path: str, body: dict) -> None:
    """By their own words for tokens, and by the names of their events."""
    for is_stream in (False, True):
        with watched.gateway.client as client:
            asked = {"model": "base-model", "stream": is_stream, **body}
            assert client.post(path, json=asked).status_code == 200
        told = watched.outcome()
        assert (told.route, told.status, told.is_stream) == (path, 200, is_stream)
        assert (told.prompt_tokens, told.completion_tokens) == (2, 3)
        assert told.num_events == (3 if is_stream else 0)


def test_a_saved_model_is_named(watched: Watched, tmp_path: Path) -> None:
    """With the version that served the request."""
    with watched.gateway.client as client:
        push(client, make_vector(tmp_path / "v"), "skill")
        saved = {"name": "acme/bot", "task_vectors": {"skill": 1}}
        assert client.post("/v1/loadouts", json=saved).status_code == 201
    assert watched.ask("p", model="acme/bot").status_code == 200
    told = watched.outcome()
    assert (told.model, told.saved_model, told.saved_name) == ("acme/bot", "acme/bot@1", "acme/bot")
    assert told.loadout.startswith("sha256:")


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"model": "other"}, 404, "model_not_found"),
        ({"task_vectors": {"nobody": 1}}, 404, "task_vector_not_found"),
        ({"colour": 1}, 400, "unknown_parameter"),
    ],
)
def test_a_refusal_is_an_outcome(watched: Watched, fields: dict, status: int, code: str) -> None:
    """With the status and the code that the client got."""
    assert watched.ask("p", **fields).status_code == status
    told = watched.outcome()
    assert (told.status, told.code, told.is_error) == (status, code, True)


@pytest.mark.parametrize(
    ("prompt", "stream", "status", "tokens"),
    [
        ("vllm error", False, 400, 0),
        ("die", False, 502, 0),
        ("die midway", True, 502, 1),
        ("die at the end", True, 200, 3),
        ("fail midway", True, 500, 3),
    ],
)
def test_an_engine_that_fails(
    watched: Watched, prompt: str, stream: bool, status: int, tokens: int
) -> None:
    """Before its answer or in the middle of a stream, which counts what came."""
    watched.ask(prompt, stream=stream)
    told = watched.outcome()
    assert (told.status, told.completion_tokens) == (status, tokens)


@pytest.mark.parametrize(("prompt", "status"), [("busy error", 429), ("away error", 503)])
def test_an_engine_that_is_busy_says_when_to_come_back(
    watched: Watched, prompt: str, status: int
) -> None:
    """Though vLLM itself does not."""
    answer = watched.ask(prompt)
    assert answer is not None
    assert (answer.status_code, answer.headers["retry-after"]) == (status, "5")
    assert watched.outcome().status == status


@pytest.mark.parametrize(("stream", "tokens"), [(False, 0), (True, 1)])
def test_a_client_that_leaves(watched: Watched, stream: bool, tokens: int) -> None:
    """499, which is no error of anybody's."""
    watched.ask("hang midway" if stream else "hang", stream=stream, timeout=0.5)
    told = watched.outcome()
    assert (told.status, told.is_error, told.completion_tokens) == (499, False, tokens)


def test_a_stream_that_has_ended_when_the_server_is_stopped(tmp_path: Path) -> None:
    """It has its answer already, and is not told a second time."""
    with running(make_config(tmp_path)) as gateway:
        watched = Watched(gateway.wait_ready())
        thread = threading.Thread(
            target=watched.ask, args=["hang at the end"], kwargs={"stream": True}
        )
        thread.start()
        wait_for(lambda: gateway.inner.in_flight.streams == 1)
        time.sleep(0.5)
    thread.join()
    [told] = watched.outcomes
    assert (told.status, told.code, told.completion_tokens) == (200, None, 3)


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_is_stopped(tmp_path: Path, stream: bool) -> None:
    """What was not done in time is told as 503."""
    with running(make_config(tmp_path)) as gateway:
        watched = Watched(gateway.wait_ready())
        prompt = "hang midway" if stream else "hang"
        thread = threading.Thread(target=watched.ask, args=[prompt], kwargs={"stream": stream})
        thread.start()
        in_flight = gateway.inner.in_flight
        wait_for(lambda: (in_flight.streams if stream else in_flight.requests) == 1)
        time.sleep(0.2)
    thread.join()
    [told] = watched.outcomes
    assert (told.status, told.code) == (503, "shutting_down")
    assert told.completion_tokens == int(stream)
