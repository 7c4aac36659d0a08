"""OpenAI's own Python client against the gateway, in front of the stand-in engine."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.outfitter.harness import make_config, make_vector, push, running

BOT = "client/bot"
ASK = [{"role": "user", "content": "go"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """Of a gateway with the vector `json` and the saved loadout `client/bot`."""
    root = tmp_path_factory.mktemp("sdk")
    with running(make_config(root)) as gateway:
        gateway.wait_ready()
        with gateway.client as client:
            push(client, make_vector(root / "v"), "json")
            saved = {"name": BOT, "task_vectors": {"json": 0.5}}
            assert client.post("/v1/loadouts", json=saved).status_code == 201
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as found:
            yield found


def beside(sdk: openai.OpenAI) -> openai.AsyncOpenAI:
    """The asynchronous client of the same gateway."""
    return openai.AsyncOpenAI(base_url=sdk.base_url, api_key="none", max_retries=0)


def seen(text: str | None) -> dict:
    """The body that the engine was sent, less its model."""
    body = json.loads(text or "")["body"]
    return {key: value for key, value in body.items() if key != "model"}


def test_a_chat_completion_of_a_saved_model(sdk: openai.OpenAI) -> None:
    """With the fields that OpenAI's API does not have beside those that it has."""
    answer = sdk.chat.completions.create(model=BOT, messages=ASK)
    assert (answer.model, answer.choices[0].finish_reason) == (BOT, "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 5
    assert answer.model_extra is not None
    assert answer.model_extra["task_vectors"]["saved"] == {"name": BOT, "version": 1}
    assert answer._request_id


def test_what_a_client_sends_reaches_the_engine(sdk: openai.OpenAI) -> None:
    """As it was sent."""
    fields = {
        "n": 2,
        "stop": ["a", "b"],
        "logprobs": True,
        "top_logprobs": 3,
        "seed": 7,
        "user": "u",
        "temperature": 0.5,
        "tools": [TOOL],
        "tool_choice": "auto",
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
        "store": False,
        "metadata": {"a": "b"},
        "service_tier": "auto",
    }
    extra = {"top_k": 3, "structured_outputs": {"regex": "a+"}, "chat_template_kwargs": {"x": 1}}
    messages = [{"role": "user", "content": "echo"}]
    answer = sdk.chat.completions.create(
        model="base-model", messages=messages, extra_body=extra, **fields
    )
    assert seen(answer.choices[0].message.content) == {"messages": messages, **fields, **extra}
    assert len(answer.choices) == 2


def test_a_tool_is_called(sdk: openai.OpenAI) -> None:
    """The call comes as the engine made it."""
    answer = sdk.chat.completions.create(
        model=BOT, messages=ASK, tools=[TOOL], tool_choice="required"
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert (call.type, call.function.name) == ("function", "look")


def test_a_stream_with_usage(sdk: openai.OpenAI) -> None:
    """Every chunk has the client's model name; the first says what serves, the last the cost."""
    options = {"include_usage": True}
    with sdk.chat.completions.create(
        model=BOT, messages=ASK, stream=True, stream_options=options
    ) as stream:
        chunks = list(stream)
    assert {chunk.model for chunk in chunks} == {BOT}
    assert chunks[0].model_extra["task_vectors"]["saved"]["name"] == BOT
    assert chunks[-1].usage.total_tokens == 4
    words = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert words[:2] + words[-1:] == ["", "one", "three"]


def test_the_streaming_helper(sdk: openai.OpenAI) -> None:
    """It puts the chunks together again."""
    with sdk.chat.completions.stream(model=BOT, messages=ASK) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert kinds.count("content.delta") == 4  # the first says who speaks, as vLLM sends it
    assert (final.choices[0].message.content or "").startswith("one")


def test_the_raw_response_has_our_headers(sdk: openai.OpenAI) -> None:
    """What served it, and the request's id."""
    headers = {"x-request-id": "mine"}
    raw = sdk.chat.completions.with_raw_response.create(
        model=BOT, messages=ASK, extra_headers=headers
    )
    assert raw.headers["x-outfitter-loadout"].startswith("sha256:")
    assert raw.request_id == "mine"
    assert raw.parse().model == BOT


def test_many_at_once(sdk: openai.OpenAI) -> None:
    """The asynchronous client, whole answers and streams together, saved and mixed on request."""

    async def ask(client: openai.AsyncOpenAI, number: int) -> str:
        if number % 2:
            answer = await client.chat.completions.create(model=BOT, messages=ASK)
            return answer.model
        extra = {"task_vectors": {"json": number / 100}}
        stream = await client.chat.completions.create(
            model="base-model", messages=ASK, stream=True, extra_body=extra
        )
        return {chunk.model async for chunk in stream}.pop()

    async def ask_all() -> list[str]:
        async with beside(sdk) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(24)))

    assert asyncio.run(ask_all()) == ["base-model", BOT] * 12


def test_a_completion(sdk: openai.OpenAI) -> None:
    """The older API."""
    answer = sdk.completions.create(model=BOT, prompt="go", n=2)
    assert (answer.model, len(answer.choices)) == (BOT, 2)


def test_a_response(sdk: openai.OpenAI) -> None:
    """Whole, with its text put together by the client."""
    answer = sdk.responses.create(model=BOT, input="go")
    assert (answer.model, answer.object) == (BOT, "response")
    assert answer.output_text.startswith("said ")
    assert answer.tools[0].parameters == {"model": "kept"}


def test_a_response_is_streamed(sdk: openai.OpenAI) -> None:
    """Typed events, by both ways of the client."""
    events = list(sdk.responses.create(model=BOT, input="go", stream=True))
    assert events[0].type == "response.created"
    assert events[0].response.model == BOT
    assert events[-1].type == "response.completed"
    assert events[-1].response.model == BOT
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert events[0].model_extra["task_vectors"]["saved"]["name"] == BOT


def test_models_are_listed_and_retrieved(sdk: openai.OpenAI) -> None:
    """Names with slashes and versions, too."""
    assert [model.id for model in sdk.models.list()] == ["base-model", BOT]
    found = sdk.models.retrieve(BOT)
    assert (found.owned_by, found.model_extra["version"]) == ("client", 1)
    assert sdk.models.retrieve(f"{BOT}@1").id == f"{BOT}@1"


def test_every_failure_raises_its_class(sdk: openai.OpenAI) -> None:
    """With OpenAI's fields filled in."""
    chat, base = sdk.chat.completions, {"model": "base-model", "messages": ASK}
    cases = (
        (lambda: chat.create(model="nobody", messages=ASK), openai.NotFoundError, "model"),
        (
            lambda: chat.create(model=BOT, messages=ASK, extra_body={"task_vectors": {"json": 1}}),
            openai.BadRequestError,
            "task_vectors",
        ),
        (
            lambda: chat.create(**base, extra_body={"temprature": 1}),
            openai.BadRequestError,
            "temprature",
        ),
        (
            lambda: chat.create(**base, extra_body={"task_vectors": {"nope": 1}}),
            openai.NotFoundError,
            "task_vectors",
        ),
        (
            lambda: chat.create(**base, modalities=["text", "audio"]),
            openai.BadRequestError,
            "modalities",
        ),
        (lambda: sdk.embeddings.create(model=BOT, input="x"), openai.NotFoundError, None),
        (lambda: sdk.models.retrieve("nobody"), openai.NotFoundError, "model"),
        (lambda: sdk.responses.retrieve("resp_1"), openai.NotFoundError, None),
        (
            lambda: sdk.responses.create(model=BOT, input="x", previous_response_id="resp_1"),
            openai.BadRequestError,
            "previous_response_id",
        ),
        (
            lambda: sdk.audio.transcriptions.create(model=BOT, file=b"x"),
            openai.NotFoundError,
            None,
        ),
        (lambda: sdk.images.generate(model=BOT, prompt="x"), openai.NotFoundError, None),
        (lambda: sdk.moderations.create(input="x"), openai.NotFoundError, None),
    )
    for number, (attempt, kind, param) in enumerate(cases):
        with pytest.raises(kind) as caught:
            attempt()
        error = caught.value
        assert isinstance(error, openai.APIStatusError), number
        assert (error.param, error.type) == (param, "invalid_request_error"), number
        assert error.code, number
        assert error.request_id, number


def test_an_engine_error_is_raised(sdk: openai.OpenAI) -> None:
    """Without the engine's name for the model."""
    messages = [{"role": "user", "content": "vllm error"}]
    with pytest.raises(openai.BadRequestError, match=f"bad {BOT}"):
        sdk.chat.completions.create(model=BOT, messages=messages)


@pytest.mark.parametrize("api", ["chat", "completions", "responses"])
def test_a_fault_amid_a_stream_is_raised(sdk: openai.OpenAI, api: str) -> None:
    """After what came before."""
    prompt = "fail midway"
    messages = [{"role": "user", "content": prompt}]
    start = {
        "chat": lambda: sdk.chat.completions.create(model=BOT, messages=messages, stream=True),
        "completions": lambda: sdk.completions.create(model=BOT, prompt=prompt, stream=True),
        "responses": lambda: sdk.responses.create(model=BOT, input=prompt, stream=True),
    }
    got: list[object] = []
    with pytest.raises(openai.APIError, match=f"no {BOT}"):
        got.extend(map(got.append, start[api]()))
    assert len(got) >= 3


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_a_death_amid_a_stream_is_raised(tmp_path: Path, api: str) -> None:
    """And the client reads what to do."""
    with running(make_config(tmp_path)) as gateway:
        gateway.wait_ready()
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=0) as sdk:
            messages = [{"role": "user", "content": "die midway"}]
            chat, responses = sdk.chat.completions, sdk.responses
            stream = (
                chat.create(model="base-model", messages=messages, stream=True)
                if api == "chat"
                else responses.create(model="base-model", input="die midway", stream=True)
            )
            with pytest.raises(openai.APIError, match="being restarted: try again"):
                list(stream)
