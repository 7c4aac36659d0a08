"""The gateway over a real engine: OpenAI's shapes, bounded tables, closed doors."""

import asyncio
import http.client
import json
import random
import re
import socket
import stat
from pathlib import Path

import openai
import pytest

from tests.end_to_end.conftest import Gateway
from tests.end_to_end.synthetic import Synthetic
from tests.end_to_end.test_truth import gather

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def test_a_chat_answer_names_the_loadout_that_served_it(gateway: Gateway) -> None:
    """Body, header, and the model name that the client sent."""

    async def ask(model: str) -> openai._legacy_response.LegacyAPIResponse:
        async with gateway.client() as client:
            return await client.chat.completions.with_raw_response.create(
                model=model,
                messages=QUESTION,
                max_tokens=4,
                extra_body={"task_vectors": {"lowrank": 0.7, "sparse": -0.5}},
            )

    raw = asyncio.run(ask(gateway.model))
    answer = json.loads(raw.text)
    described = answer["task_vectors"]
    assert answer["model"] == gateway.model
    assert raw.headers["x-outfitter-loadout"] == described["loadout"]
    assert [(v["name"], v["version"], v["weight"]) for v in described["vectors"]] == [
        ("lowrank", 1, 0.7),
        ("sparse", 1, -0.5),
    ]


def test_a_stream_describes_its_loadout_in_the_first_chunk(gateway: Gateway) -> None:
    """Later chunks are as the engine sends them; usage comes at the end."""

    async def ask() -> list[openai.types.chat.ChatCompletionChunk]:
        async with gateway.client() as client:
            stream = await client.chat.completions.create(
                model=gateway.model,
                messages=QUESTION,
                max_tokens=6,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"task_vectors": {"sparse": 0.5}},
            )
            return [chunk async for chunk in stream]

    chunks = asyncio.run(ask())
    described = [getattr(chunk, "task_vectors", None) for chunk in chunks]
    assert described[0]["vectors"][0]["name"] == "sparse"
    assert not any(described[1:])
    assert {chunk.model for chunk in chunks} == {gateway.model}
    assert chunks[-1].usage is not None


def test_the_base_is_called_by_its_path_too(gateway: Gateway, base_dir: Path) -> None:
    """`--model` is a name for the model, as in vLLM; the answer says what was sent."""

    async def ask() -> openai.types.Completion:
        async with gateway.client() as client:
            return await client.completions.create(model=str(base_dir), prompt="Hi", max_tokens=1)

    assert asyncio.run(ask()).model == str(base_dir)


@pytest.mark.parametrize(
    ("task_vectors", "error", "code"),
    [
        ({"nobody": 1.0}, openai.NotFoundError, "task_vector_not_found"),
        ({"sparse": 1e9}, openai.BadRequestError, "invalid_loadout"),
        ({"../x": 1.0}, openai.BadRequestError, "invalid_reference"),
        ({"vectors": {"sparse": 1}, "method": "tiez"}, openai.BadRequestError, "invalid_loadout"),
    ],
)
def test_a_bad_loadout_is_an_openai_error(
    gateway: Gateway, task_vectors: object, error: type[openai.APIStatusError], code: str
) -> None:
    """Status, type and code are what the client's own classes expect."""
    with pytest.raises(error) as caught:
        gather(gateway, [("Hi", task_vectors)], tokens=1)
    assert caught.value.code == code
    assert caught.value.param == "task_vectors"


def test_a_loadout_larger_than_the_pool_is_refused_by_size(
    gateway: Gateway, big: list[Synthetic]
) -> None:
    """Nothing crashes, and the error names both sizes."""
    mix = {vector.name: 0.1 for vector in big} | {"full": 1, "lowrank": 1, "sparse": 1}
    with pytest.raises(openai.BadRequestError, match="the pool has"):
        gather(gateway, [("Hi", mix)], tokens=1)


def test_many_loadouts_leave_no_trace_in_the_engine(gateway: Gateway) -> None:
    """Models and metric series of the engine do not grow with the loadouts it has seen."""
    dice = random.Random(3)
    mixes = [{"sparse": round(dice.uniform(-1, 1), 6)} for _ in range(60)]
    gather(gateway, [("Hi", mix) for mix in mixes], tokens=1)
    _, models = _engine(gateway, "GET", "/v1/models")
    assert [model["id"] for model in json.loads(models)["data"]] == [gateway.model]
    _, metrics = _engine(gateway, "GET", "/metrics")
    series = re.findall(r"^vllm:lora_requests_info\{", metrics, re.MULTILINE)
    assert len(series) <= 1
    assert "tv:" not in metrics


def test_runtime_lora_endpoints_cannot_be_reached(gateway: Gateway) -> None:
    """Neither through the gateway nor on the engine's own socket, which only its user can open."""
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/tokenize"):
        assert gateway.get(path)[0] in (404, 405)
    status, _ = _engine(
        gateway, "POST", "/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "/"}
    )
    assert status == 404
    assert stat.S_IMODE(gateway.engine_socket().parent.stat().st_mode) == 0o700


def _engine(gateway: Gateway, method: str, path: str, body: object = None) -> tuple[int, str]:
    """Ask vLLM itself on its unix socket."""
    connection = http.client.HTTPConnection("engine")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(gateway.engine_socket()))
    headers = {"content-type": "application/json"}
    connection.request(method, path, json.dumps(body) if body else None, headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()
