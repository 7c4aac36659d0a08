"""Requests to the models, through the gateway, in front of the stand-in engine."""

import json

import httpx
import openai
import pytest

from taskvectors.spec import Loadout, LoadoutItem
from tests.outfitter.harness import Running, make_vector, push, wait_for

BOTH = ("/v1/completions", "/v1/chat/completions")


def ask(client: httpx.Client, prompt: str, **fields: object) -> httpx.Response:
    return client.post("/v1/completions", json={"model": "base-model", "prompt": prompt, **fields})


def echo(client: httpx.Client, **fields: object) -> dict:
    """What the engine saw."""
    response = ask(client, "echo", **fields)
    assert response.status_code == 200, response.text
    return json.loads(response.json()["choices"][0]["text"])


def error_of(response: httpx.Response) -> dict:
    """The error, in OpenAI's shape or not at all."""
    assert response.headers["content-type"] == "application/json"
    (error,) = response.json().values()
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"] in ("invalid_request_error", "server_error", "rate_limit_error")
    assert error["code"] is None or isinstance(error["code"], str)
    return error


@pytest.fixture(scope="module")
def digests(gateway: Running, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("vectors")
    with gateway.client as client:
        files = [make_vector(root / f"{seed}", seed=seed) for seed in (1, 2)]
        names = ("json", "acme/legal")
        return [push(client, file, name)["digest"] for file, name in zip(files, names, strict=True)]


def test_a_base_request_reaches_the_engine_as_it_was(client: httpx.Client) -> None:
    """Without task vectors the engine gets the client's body, and the client the engine's."""
    response = ask(client, "echo", min_tokens=3)
    seen = json.loads(response.json()["choices"][0]["text"])
    assert seen["body"] == {"model": "base-model", "prompt": "echo", "min_tokens": 3}
    assert "x-taskvectors-loadout" not in {name.lower() for name in seen["headers"]}
    assert response.headers["x-outfitter-loadout"] == "base"
    assert "task_vectors" not in response.json()


def test_a_loadout_travels_in_the_header(client: httpx.Client, digests: list[str]) -> None:
    """The engine gets the canonical loadout; the client reads what served it."""
    items = [LoadoutItem(digests[0][7:], 0.8), LoadoutItem(digests[1][7:], -0.2)]
    loadout = Loadout.build(items)
    response = ask(client, "echo", task_vectors={"json": 0.8, "acme/legal@1": -0.2})
    seen = json.loads(response.json()["choices"][0]["text"])
    headers = {name.lower(): value for name, value in seen["headers"].items()}
    assert headers["x-taskvectors-loadout"] == loadout.canonical
    assert seen["body"] == {"model": loadout.engine_name, "prompt": "echo"}
    assert response.headers["x-outfitter-loadout"] == f"sha256:{loadout.digest}"
    assert response.json()["model"] == "base-model"
    assert response.json()["task_vectors"] == {
        "loadout": f"sha256:{loadout.digest}",
        "method": "linear",
        "vectors": [
            {"name": "json", "version": 1, "digest": digests[0], "weight": 0.8},
            {"name": "acme/legal", "version": 1, "digest": digests[1], "weight": -0.2},
        ],
    }


@pytest.mark.parametrize(
    "reference", ["json", "json@1", "json@{0}", "{0}"], ids=["name", "version", "digest", "bare"]
)
def test_every_reference_means_the_same_loadout(
    client: httpx.Client, digests: list[str], reference: str
) -> None:
    """A name, a pinned name and a digest resolve to one loadout."""
    wanted = Loadout.build([LoadoutItem(digests[0][7:], 1.0)])
    entry = {"name": reference.format(digests[0])}
    response = ask(client, "echo", task_vectors=[entry])
    assert response.headers["x-outfitter-loadout"] == f"sha256:{wanted.digest}"


def test_the_list_form_keeps_its_selection(client: httpx.Client, digests: list[str]) -> None:
    """Layers and modules are part of the loadout and of its description."""
    entry = {"name": "json", "weight": 2, "layers": ["0-3"], "modules": {"mlp.*": 0.5}}
    vectors = ask(client, "echo", task_vectors=[entry]).json()["task_vectors"]["vectors"]
    assert vectors[0]["layers"] == [[0, 3, 1.0]]
    assert vectors[0]["modules"] == [["mlp.*", 0.5]]


@pytest.mark.parametrize("value", [None, {}, [], {"json": 0}])
def test_nothing_to_add_is_the_base(
    client: httpx.Client, digests: list[str], value: object
) -> None:
    """Null, empty and zero task vectors are served by the base."""
    response = ask(client, "echo", task_vectors=value)
    seen = json.loads(response.json()["choices"][0]["text"])
    assert seen["body"] == {"model": "base-model", "prompt": "echo"}
    assert response.headers["x-outfitter-loadout"] == "base"
    described = response.json().get("task_vectors")
    assert (described is None) == (value is None)
    assert value is None or described["loadout"] == "base"


def test_a_client_cannot_name_an_engine_loadout(client: httpx.Client) -> None:
    """The header between gateway and engine is never taken from a client."""
    body = {"model": "base-model", "prompt": "echo"}
    headers = {"x-taskvectors-loadout": "{}", "authorization": "x", "x-request-id": "r1"}
    response = client.post("/v1/completions", json=body, headers=headers)
    seen = json.loads(response.json()["choices"][0]["text"])["headers"]
    lower = {name.lower(): value for name, value in seen.items()}
    assert "x-taskvectors-loadout" not in lower
    assert "authorization" not in lower
    assert lower["x-request-id"] == "r1"


def test_the_openai_client_streams_a_loadout(gateway: Running, digests: list[str]) -> None:
    """The first chunk describes the loadout; every chunk has the client's model name."""
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none")
    extra = {"task_vectors": {"json": 0.5}}
    stream = client.completions.create(
        model="base-model", prompt="go", stream=True, extra_body=extra
    )
    chunks = list(stream)
    assert [chunk.model for chunk in chunks] == ["base-model"] * 3
    assert chunks[0].model_extra["task_vectors"]["vectors"][0]["name"] == "json"
    assert "task_vectors" not in chunks[1].model_extra
    engine_name = Loadout.build([LoadoutItem(digests[0][7:], 0.5)]).engine_name
    assert chunks[1].choices[0].text == f'"model":"{engine_name}"'


@pytest.mark.parametrize("path", BOTH)
@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"model": "other"}, 404, "model_not_found", "model"),
        ({"model": None}, 400, "missing_model", "model"),
        ({"model": 3}, 400, None, "model"),
        ({"colour": "red"}, 400, "unknown_parameter", "colour"),
        ({"task_vectors": {"nobody": 1}}, 404, "task_vector_not_found", "task_vectors"),
        ({"task_vectors": {"json": 17}}, 400, "invalid_loadout", "task_vectors"),
        ({"task_vectors": {"json": "1"}}, 400, "invalid_loadout", "task_vectors"),
        ({"task_vectors": "json"}, 400, "invalid_loadout", "task_vectors"),
        ({"task_vectors": {"a b": 1}}, 400, "invalid_reference", "task_vectors"),
        ({"task_vectors": {"json@9": 1}}, 404, "task_vector_not_found", "task_vectors"),
        (
            {"task_vectors": [{"name": "json", "modules": ["mpl.*"]}]},
            400,
            "invalid_loadout",
            "task_vectors",
        ),
        (
            {"task_vectors": [{"name": "json", "layers": ["400"]}]},
            400,
            "invalid_loadout",
            "task_vectors",
        ),
        ({"task_vectors": [{"nam": "json"}]}, 400, "invalid_loadout", "task_vectors"),
        (
            {"task_vectors": {"vectors": {"json": 1}, "method": "stir"}},
            400,
            "invalid_loadout",
            "task_vectors",
        ),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(
    client: httpx.Client,
    digests: list[str],
    path: str,
    fields: dict,
    status: int,
    code: str | None,
    param: str,
) -> None:
    """Each mistake has its status, its code and the field it is in."""
    prompt = {"prompt": "x"} if path == "/v1/completions" else {"messages": []}
    response = client.post(path, json={"model": "base-model", **prompt, **fields})
    assert response.status_code == status, response.text
    error = error_of(response)
    assert (error["code"], error["param"]) == (code, param)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"temperature": NaN}',
        b'{"task_vectors": {"json": 1, "json": 2}}',
        b"[" * 50_000,
    ],
)
def test_a_body_that_is_no_json_object_is_rejected(client: httpx.Client, content: bytes) -> None:
    """Broken JSON, constants JSON does not have, and keys that occur twice are a 400."""
    response = client.post("/v1/completions", content=content)
    assert response.status_code == 400
    assert error_of(response)["code"] == "invalid_json"


def test_a_lone_surrogate_breaks_nothing(client: httpx.Client) -> None:
    """Text that has no UTF-8 form is still answered in JSON."""
    response = client.post("/v1/completions", content=b'{"model": "\\ud800"}')
    assert response.status_code == 404
    error_of(response)


def test_a_body_over_the_limit_is_rejected(client: httpx.Client) -> None:
    """413, whether the length is announced or not."""
    for content in (b"x" * 70_000, (b"x" * 7_000 for _ in range(10))):
        response = client.post("/v1/completions", content=content)
        assert response.status_code == 413
        assert error_of(response)["code"] == "body_too_large"


@pytest.mark.parametrize(
    ("prompt", "status", "message"),
    [
        ("vllm error", 400, "bad base-model"),
        ("detail error", 422, "no such thing"),
        ("bare error", 502, "the engine refused the gateway itself (401): Unauthorized"),
        ("text error", 500, "Internal Server Error at the engine"),
    ],
)
def test_an_error_of_the_engine_gets_the_right_shape(
    client: httpx.Client, digests: list[str], prompt: str, status: int, message: str
) -> None:
    """Whatever the engine's error looks like, the client's is OpenAI's, without inner names."""
    response = ask(client, prompt, task_vectors={"json": 1})
    assert response.status_code == status
    assert error_of(response)["message"] == message


def test_a_stream_that_fails_says_why(client: httpx.Client, digests: list[str]) -> None:
    """An error inside a stream is relayed without the engine's names."""
    response = ask(client, "fail midway", stream=True, task_vectors={"json": 1})
    assert '"message": "no base-model"' in response.text
    assert response.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_aborts_its_request(client: httpx.Client, stream: bool) -> None:
    """The engine's request ends with the connection it was for."""
    before = echo(client)["aborted"]
    prompt = "hang midway" if stream else "hang"
    body = {"model": "base-model", "prompt": prompt, "stream": stream}
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/completions", json=body, timeout=0.5)
    wait_for(lambda: echo(client)["aborted"] == before + 1)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("POST", "/sleep"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/embeddings"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/v1/models/"),
    ],
)
def test_what_the_gateway_does_not_offer_is_not_reachable(
    client: httpx.Client, method: str, path: str
) -> None:
    """The engine's other routes end at the gateway, in OpenAI's shape."""
    response = client.request(method, path)
    assert response.status_code == 404
    error_of(response)


def test_a_wrong_method_is_told_so(client: httpx.Client) -> None:
    """405 in OpenAI's shape."""
    response = client.get("/v1/completions")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    error_of(response)


def test_the_base_is_the_only_model(gateway: Running, client: httpx.Client) -> None:
    """Models are listed and looked up as OpenAI does it."""
    models = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none").models
    assert [model.id for model in models.list()] == ["base-model"]
    assert models.retrieve("base-model").owned_by == "outfitter"
    missing = client.get("/v1/models/tv:0")
    assert missing.status_code == 404
    assert error_of(missing)["code"] == "model_not_found"


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "m" * 30000},
        {"x" * 30000: 1},
        {"task_vectors": {"n" * 30000: 1}},
        {"task_vectors": {"n" * 30000: 99}},
        {"task_vectors": [{"name": "n" * 30000}]},
        {"task_vectors": [{"name": "json", "x" * 30000: 1}]},
        {"task_vectors": [{"name": "json", "layers": ["x" * 30000]}]},
        {"task_vectors": [{"name": "json", "modules": {"x" * 30000: 1}}]},
        {"task_vectors": [{"name": "json", "modules": {"x" * 30000: 99}}]},
        {"task_vectors": {"vectors": [], "method": "x" * 30000}},
        {"task_vectors": {"json@" + "x" * 30000: 1}},
    ],
)
def test_an_error_does_not_repeat_a_long_text(client: httpx.Client, fields: dict) -> None:
    """At most 200 characters of a name come back."""
    response = client.post("/v1/completions", json={"model": "base-model", "prompt": "x", **fields})
    assert 400 <= response.status_code < 500
    assert all(letter * 201 not in response.text for letter in "mnx")
    assert len(response.text) < 1500


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("path", ["models", "task_vectors", "nowhere"])
def test_an_error_does_not_repeat_a_long_path(client: httpx.Client, method: str, path: str) -> None:
    """The same for what stands in the address."""
    response = client.request(method, f"/v1/{path}/{'n' * 5000}")
    assert 400 <= response.status_code < 500
    assert "n" * 201 not in response.text
