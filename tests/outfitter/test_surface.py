"""Everything beside completions: other routes, other dialects, request ids and bounds."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.outfitter.harness import Running, make_config, running
from tests.outfitter.test_completions import error_of
from tests.outfitter.test_saved_models import BODIES

NAMED = ("/v1/responses", "/v1/messages")
"""Routes whose streams have named events."""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Running]:
    """One whose engine may die."""
    with running(make_config(tmp_path)) as found:
        yield found.wait_ready()


def events(text: str) -> list[tuple[str | None, object]]:
    """Name and data of each event."""
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
        data = fields["data"]
        found.append((fields.get("event"), data if data == "[DONE]" else json.loads(data)))
    return found


def stream(client: httpx.Client, path: str, prompt: str = "go") -> str:
    body = json.loads(json.dumps(BODIES[path]).replace('"go"', json.dumps(prompt)))
    answer = client.post(path, json={"model": "base-model", "stream": True, **body})
    assert answer.status_code == 200, answer.text
    return answer.text


@pytest.mark.parametrize("path", NAMED)
def test_named_events_keep_their_names(client: httpx.Client, path: str) -> None:
    """Each event's data has the type that its name says."""
    found = events(stream(client, path))
    assert len(found) >= 5
    assert all(isinstance(data, dict) and data["type"] == name for name, data in found)


@pytest.mark.parametrize("path", BODIES)
def test_a_fault_of_the_engine_amid_a_stream_is_an_error_event(
    client: httpx.Client, path: str
) -> None:
    """In the dialect of the route, without the engine's words for things."""
    found = events(stream(client, path, "fail midway"))
    name, data = next((name, data) for name, data in found if "error" in data)
    assert isinstance(data, dict)
    assert data["error"]["message"] == "no base-model"
    if path in NAMED:
        assert (name, data["type"]) == ("error", "error")
    else:
        assert data["error"]["type"] == "server_error"


@pytest.mark.parametrize("path", NAMED)
def test_a_death_amid_a_stream_is_an_error_event(own: Running, path: str) -> None:
    """The last thing that the client reads."""
    with own.client as client:
        text = stream(client, path, "die midway")
    name, data = events(text)[-1]
    assert isinstance(data, dict)
    assert (name, data["type"], data["error"]["code"]) == ("error", "error", "engine_died")
    assert data["error"]["type"] == ("api_error" if path == "/v1/messages" else "server_error")


@pytest.mark.parametrize("path", ["/v1/chat/completions", *NAMED])
def test_a_death_after_the_end_of_a_stream_is_no_error(own: Running, path: str) -> None:
    """The engine has said that this was all: nothing is told a second time."""
    with own.client as client:
        text = stream(client, path, "die at the end")
    assert "error" not in text
    assert text.endswith("\n\n")
    last = text.rstrip().rpartition("\n")[2]
    assert any(end in last for end in ("[DONE]", "message_stop", "response.completed"))


def test_anthropic_errors_have_their_shape(client: httpx.Client) -> None:
    """Those of the gateway and those of the engine."""
    ask = {"max_tokens": 5, "messages": [{"role": "user", "content": "vllm error"}]}
    for body, status, kind in (
        ({"model": "nobody", **ask}, 404, "not_found_error"),
        ({"model": "base-model", "x": 1, **ask}, 400, "invalid_request_error"),
        ({"model": "base-model", **ask}, 400, "invalid_request_error"),
    ):
        answer = client.post("/v1/messages", json=body)
        fields = answer.json()
        assert (answer.status_code, fields["type"]) == (status, "error")
        assert (fields["error"]["type"], bool(fields["error"]["message"])) == (kind, True)


@pytest.mark.parametrize("path", ["/tokenize", "/v1/tokenize"])
def test_tokens_need_no_loadout(client: httpx.Client, path: str) -> None:
    """The model may be left out; task vectors change no tokens, and are refused."""
    for model in ({}, {"model": None}, {"model": "base-model"}):
        answer = client.post(path, json={**model, "prompt": "ab"})
        assert (answer.status_code, answer.json()["tokens"]) == (200, [97, 98])
        assert answer.json()["seen"]["model"] == "base-model"
    for value in ({}, {"json": 1}):
        refused = client.post(path, json={"prompt": "ab", "task_vectors": value})
        assert (refused.status_code, error_of(refused)["param"]) == (400, "task_vectors")
    assert client.post(path, json={"model": "nobody", "prompt": "ab"}).status_code == 404
    assert client.post(path, json={"prompt": "ab", "x": 1}).status_code == 400


def test_tokens_become_text_again(client: httpx.Client) -> None:
    """Under both names."""
    for path in ("/detokenize", "/v1/detokenize"):
        assert client.post(path, json={"tokens": [97, 98]}).json()["prompt"] == "ab"


def test_tokens_of_a_message_are_counted(client: httpx.Client) -> None:
    """As Anthropic's API does it."""
    body = {"model": "base-model", "messages": [{"role": "user", "content": "four"}]}
    assert client.post("/v1/messages/count_tokens", json=body).json() == {"input_tokens": 4}


@pytest.mark.parametrize(
    "path", ["/v1/embeddings", "/v1/score", "/score", "/v1/rerank", "/rerank", "/classify"]
)
def test_what_the_model_cannot_do_is_said(client: httpx.Client, path: str) -> None:
    """404, whatever the body is."""
    answer = client.post(path, content=b"{")
    assert (answer.status_code, error_of(answer)["code"]) == (404, "unsupported_route")
    assert f"the served model does not support {path}" in error_of(answer)["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/audio/transcriptions"),
        ("POST", "/v1/audio/speech"),
        ("POST", "/v1/images/generations"),
        ("GET", "/v1/responses/resp_1"),
        ("DELETE", "/v1/responses/resp_1"),
        ("POST", "/v1/responses/resp_1/cancel"),
        ("GET", "/v1/responses/resp_1/input_items"),
        ("POST", "/v1/moderations"),
        ("GET", "/v1/files"),
        ("POST", "/v1/batches"),
        ("GET", "/v1/fine_tuning/jobs"),
    ],
)
def test_what_is_not_offered_says_why(client: httpx.Client, method: str, path: str) -> None:
    """Of OpenAI's API; nobody reads another's response by its id."""
    answer = client.request(method, path)
    assert (answer.status_code, error_of(answer)["code"]) == (404, "unsupported_route")


@pytest.mark.parametrize(
    "fields", [{"previous_response_id": "resp_1"}, {"background": True}, {"conversation": "c"}]
)
def test_responses_have_no_memory(client: httpx.Client, fields: dict[str, object]) -> None:
    """It says what to send instead."""
    body = {"model": "base-model", "input": "x", **fields}
    answer = client.post("/v1/responses", json=body)
    assert (answer.status_code, error_of(answer)["code"]) == (400, "unsupported_parameter")
    assert "whole conversation" in error_of(answer)["message"]


@pytest.mark.parametrize("given", ["r1", "a" * 128, ".3f.b_c:d-"])
def test_a_request_keeps_its_id(client: httpx.Client, given: str) -> None:
    """To the engine and back, in answers and errors."""
    body = {"model": "base-model", "prompt": "echo"}
    answer = client.post("/v1/completions", json=body, headers={"x-request-id": given})
    seen = json.loads(answer.json()["choices"][0]["text"])["headers"]
    assert {name.lower(): value for name, value in seen.items()}["x-request-id"] == given
    for path in ("/health/live", "/v1/models/nobody", "/nowhere", "/v1/completions"):
        answer = client.get(path, headers={"x-request-id": given})
        assert answer.headers.get_list("x-request-id") == [given]


@pytest.mark.parametrize("given", [None, "", "a" * 129, "a b", "é".encode(), "a/b", "a;b", "a,b"])
def test_a_request_without_a_sane_id_is_given_one(
    client: httpx.Client, given: str | bytes | None
) -> None:
    """Another for each."""
    headers = {} if given is None else {"x-request-id": given}
    ids = [client.get("/health/live", headers=headers).headers["x-request-id"] for _ in range(2)]
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)
    assert ids[0] != ids[1]


def test_two_ids_are_none(client: httpx.Client) -> None:
    """Nobody knows which was meant."""
    twice = [("x-request-id", "a"), ("x-request-id", "b")]
    answer = client.get("/health/live", headers=twice)
    (one,) = answer.headers.get_list("x-request-id")
    assert one not in ("a", "b")


@pytest.mark.parametrize("path", BODIES)
def test_a_stream_has_its_id(client: httpx.Client, path: str) -> None:
    """Once."""
    body = {"model": "base-model", "stream": True, **BODIES[path]}
    answer = client.post(path, json=body, headers={"x-request-id": "s1"})
    assert answer.headers.get_list("x-request-id") == ["s1"]


def test_headers_and_addresses_have_bounds(client: httpx.Client) -> None:
    """431 and 414, in OpenAI's shape, with an id."""
    large = client.get("/health/live", headers={"x-large": "x" * 33_000})
    assert (large.status_code, error_of(large)["code"]) == (431, "headers_too_large")
    long = client.get("/v1/models/" + "m" * 9000)
    assert (long.status_code, error_of(long)["code"]) == (414, "uri_too_long")
    for answer in (large, long):
        assert "x-request-id" in answer.headers
    assert client.get("/health/live", headers={"x-large": "x" * 20_000}).status_code == 200


def test_a_deep_body_is_refused(client: httpx.Client) -> None:
    """Before anybody walks through it."""
    deep: object = 1
    for _ in range(70):
        deep = [deep]
    answer = client.post("/v1/completions", json={"model": "base-model", "prompt": deep})
    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_json")
    assert "64 levels" in error_of(answer)["message"]


def test_a_body_of_the_engine_that_is_no_json_is_left_alone(client: httpx.Client) -> None:
    """Bytes of embeddings may look like anything."""
    body = {"model": "base-model", "prompt": "bytes"}
    answer = client.post("/v1/completions", json=body)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.content == b'{"model":"x"}\x00'
