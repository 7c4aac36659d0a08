"""Saved loadouts as models of a real engine, on every route, by clients that nobody here wrote."""

import json
from collections.abc import Iterator

import anthropic
import httpx
import openai
import pytest

from outfitter.control.fields import known_fields
from outfitter.control.surface import ROUTES
from tests.end_to_end.conftest import CLIENT_TIMEOUT_S, PROMPT, Gateway
from tests.outfitter.engine_document import document

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
MIX = {"lowrank": 0.7, "sparse": -0.5}
COLD = {"temperature": 0}


@pytest.fixture(scope="module")
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, timeout=CLIENT_TIMEOUT_S) as client:
        yield client


@pytest.fixture(scope="module")
def bot(http: httpx.Client) -> Iterator[str]:
    """A saved loadout of one version, which lets requests add to it."""
    name = "models/bot"
    body = {"name": name, "task_vectors": MIX, "request_vectors": "add"}
    assert http.post("/v1/loadouts", json=body).status_code == 201
    yield name
    http.delete(f"/v1/loadouts/{name}")


@pytest.fixture(scope="module")
def sdk(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=CLIENT_TIMEOUT_S
    ) as client:
        yield client


def said(sdk: openai.OpenAI, model: str, **extra: object) -> tuple[str, list[float]]:
    """Tokens and their log probabilities."""
    answer = sdk.completions.create(
        model=model, prompt=PROMPT, max_tokens=8, temperature=0, logprobs=1, extra_body=extra
    )
    assert answer.model == model
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    return answer.choices[0].text, [p for p in logprobs.token_logprobs or [] if p is not None]


def test_a_saved_model_says_what_its_mix_says(
    gateway: Gateway, sdk: openai.OpenAI, bot: str
) -> None:
    """And not what the base says."""
    mixed = said(sdk, gateway.model, task_vectors=MIX)
    saved = said(sdk, bot)
    assert saved[0] == mixed[0]
    assert saved[1] == pytest.approx(mixed[1], abs=1e-4)
    assert said(sdk, f"{bot}@1")[1] == pytest.approx(mixed[1], abs=1e-4)
    assert said(sdk, gateway.model)[1] != pytest.approx(mixed[1], abs=1e-3)


def test_a_request_adds_to_a_saved_model(gateway: Gateway, sdk: openai.OpenAI, bot: str) -> None:
    """As if both had been asked for at once."""
    both = said(sdk, gateway.model, task_vectors={"lowrank": 1.0, "sparse": -0.5})
    added = said(sdk, bot, task_vectors={"lowrank": 0.3})
    assert added[1] == pytest.approx(both[1], abs=1e-4)


def test_a_version_is_moved(gateway: Gateway, sdk: openai.OpenAI, http: httpx.Client) -> None:
    """What the bare name says is what the version says."""
    name = "models/moved"
    for weight in (0.5, -0.5):
        body = {"name": name, "task_vectors": {"lowrank": weight}}
        assert http.post("/v1/loadouts", json=body).status_code == 201
    assert said(sdk, name)[1] == pytest.approx(said(sdk, f"{name}@2")[1], abs=1e-4)
    assert http.patch(f"/v1/loadouts/{name}", json={"latest": 1}).status_code == 200
    assert said(sdk, name)[1] == pytest.approx(said(sdk, f"{name}@1")[1], abs=1e-4)
    assert said(sdk, f"{name}@1")[1] != pytest.approx(said(sdk, f"{name}@2")[1], abs=1e-3)
    http.delete(f"/v1/loadouts/{name}")


def test_chat_is_streamed_with_usage(sdk: openai.OpenAI, bot: str) -> None:
    """Under the saved model's name."""
    stream = sdk.chat.completions.create(
        model=bot,
        messages=QUESTION,
        max_tokens=6,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert {chunk.model for chunk in chunks} == {bot}
    assert chunks[0].model_extra["task_vectors"]["saved"] == {"name": bot, "version": 1}
    assert chunks[-1].usage.completion_tokens == 6


def test_a_response_whole_and_streamed(sdk: openai.OpenAI, bot: str) -> None:
    """The engine's name for the loadout is nowhere."""
    whole = sdk.responses.create(model=bot, input="Say hello.", max_output_tokens=6, temperature=0)
    assert whole.model == bot
    assert whole.usage is not None
    assert whole.usage.output_tokens > 0
    events = list(
        sdk.responses.create(
            model=bot, input="Say hello.", max_output_tokens=6, temperature=0, stream=True
        )
    )
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == whole.output_text
    assert all("tv:" not in event.to_json() for event in events)
    assert events[0].response.model == events[-1].response.model == bot


def test_a_message_whole_and_streamed(gateway: Gateway, bot: str) -> None:
    """Anthropic's client."""
    with anthropic.Anthropic(
        base_url=gateway.url, api_key="none", max_retries=0, timeout=CLIENT_TIMEOUT_S
    ) as sdk:
        ask = {"model": bot, "messages": QUESTION, "max_tokens": 6, "extra_body": COLD}
        whole = sdk.messages.create(**ask)
        with sdk.messages.stream(**ask) as stream:
            streamed = stream.get_final_message()
        assert whole.model == streamed.model == bot
        assert whole.content[0].text == streamed.content[0].text
        counted = sdk.messages.count_tokens(model=bot, messages=QUESTION)
        assert counted.input_tokens == whole.usage.input_tokens
        with pytest.raises(anthropic.NotFoundError):
            sdk.messages.create(**{**ask, "model": "nobody"})


def test_text_becomes_tokens_and_text_again(http: httpx.Client, bot: str) -> None:
    """By both names of the routes, with and without a model."""
    for model in ({}, {"model": bot}):
        tokens = http.post("/v1/tokenize", json={**model, "prompt": PROMPT}).json()["tokens"]
        text = http.post("/detokenize", json={**model, "tokens": tokens}).json()["prompt"]
        assert text == PROMPT


def test_a_text_model_embeds_nothing(sdk: openai.OpenAI, bot: str) -> None:
    """And says so."""
    with pytest.raises(openai.NotFoundError, match="does not support /v1/embeddings"):
        sdk.embeddings.create(model=bot, input="x")


def test_a_structured_output_and_a_seed(sdk: openai.OpenAI, bot: str) -> None:
    """They reach the engine."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    answer = sdk.chat.completions.create(
        model=bot,
        messages=QUESTION,
        max_tokens=60,
        seed=7,
        extra_body={"structured_outputs": {"choice": ["yes", "no"]}},
    )
    assert answer.choices[0].message.content in ("yes", "no")
    answer = sdk.chat.completions.create(
        model=bot,
        messages=QUESTION,
        max_tokens=60,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content or "")["a"], int)


def test_the_stand_in_has_the_documents_of_this_engine(gateway: Gateway) -> None:
    """Its routes, and the fields of each that is relayed; `tests.outfitter.engine_document`."""
    transport = httpx.HTTPTransport(uds=str(gateway.engine_socket()))
    with httpx.Client(transport=transport, timeout=30) as client:
        real = client.get("http://engine/openapi.json").json()
    written = document()
    assert {path for path in real["paths"] if "taskvectors" not in path} == set(written["paths"])
    for route in ROUTES:
        assert known_fields(real, route.target) == known_fields(written, route.target)
