"""A client that somebody else wrote, for agents: pydantic-ai, in front of the stand-in engine.

It holds every answer against the types of OpenAI's API.
"""

import asyncio
import json
from collections.abc import Iterator

import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.outfitter.harness import Running, make_vector, push

BOT = "agents/bot"
MIX = {"extra_body": {"task_vectors": {"agents/json": 0.25}}}


@pytest.fixture(scope="module")
def url(gateway: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a gateway with a vector and a saved loadout of these tests' own."""
    with gateway.client as client:
        push(client, make_vector(tmp_path_factory.mktemp("p") / "v", seed=611), "agents/json")
        saved = {"name": BOT, "task_vectors": {"agents/json": 0.5}}
        assert client.post("/v1/loadouts", json=saved).status_code == 201
        yield f"{gateway.url}/v1"
        client.delete(f"/v1/loadouts/{BOT}")
        client.delete("/v1/task_vectors/agents/json")


def provider(url: str) -> OpenAIProvider:
    return OpenAIProvider(
        openai_client=AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
    )


def agent(url: str, model: str = "base-model", **more: object) -> Agent:
    return Agent(OpenAIChatModel(model, provider=provider(url)), **more)


def test_an_agent_asks_a_mix_of_task_vectors(url: str) -> None:
    """Which its own settings name; what it sends reaches the engine, and tokens are counted."""
    settings = {**MIX, "temperature": 0.0, "max_tokens": 9}
    result = agent(url, system_prompt="be brief").run_sync("echo", model_settings=settings)
    seen = json.loads(result.output)
    assert seen["body"]["model"].startswith("tv:")
    assert [message["role"] for message in seen["body"]["messages"]] == ["system", "user"]
    assert seen["body"]["temperature"] == 0.0
    assert (result.usage.input_tokens, result.usage.output_tokens) == (2, 3)


def test_an_agent_asks_a_saved_loadout(url: str) -> None:
    """Under its own name."""
    result = agent(url, BOT).run_sync("go")
    assert result.output.startswith("said")
    assert result.all_messages()[-1].model_name == BOT


def test_a_stream_is_put_together(url: str) -> None:
    """Of a mix; with its usage at the end."""

    async def parts() -> list[str]:
        async with agent(url).run_stream("go", model_settings=MIX) as result:
            return [text async for text in result.stream_text(delta=True, debounce_by=None)]

    words = asyncio.run(parts())
    assert (words[0], words[-1]) == ("one", "three")


class Coat(BaseModel):
    """What is asked for by a tool; all of it may be left out."""

    colour: str = "red"


def test_an_answer_of_a_type_is_asked_for_by_a_tool(url: str) -> None:
    """Tools and their choice are relayed, and so is the call."""
    result = agent(url, BOT, output_type=Coat).run_sync("go")
    assert result.output == Coat(colour="red")


def test_the_responses_api_is_asked_too(url: str) -> None:
    """By a model of its own."""
    model = OpenAIResponsesModel(BOT, provider=provider(url))
    assert "said" in Agent(model).run_sync("go").output


@pytest.mark.parametrize(
    ("model", "extra", "status", "words"),
    [
        ("nobody", {}, 404, "nobody"),
        ("base-model", {"task_vectors": {"nobody": 1}}, 404, "nobody"),
        ("base-model", {"task_vectors": {"agents/json": "much"}}, 400, "must be a number"),
        (BOT, {"task_vectors": {"agents/json": 1}}, 400, "takes no task_vectors"),
        ("base-model", {"surprise": 1}, 400, "surprise"),
    ],
)
def test_a_refusal_is_its_error(
    url: str, model: str, extra: dict[str, object], status: int, words: str
) -> None:
    """With the status, and what was wrong."""
    with pytest.raises(ModelHTTPError) as caught:
        agent(url, model).run_sync("go", model_settings={"extra_body": extra})
    assert caught.value.status_code == status
    assert words in str(caught.value.body)


def test_a_stream_that_fails_raises(url: str) -> None:
    """It is not taken for a short answer."""

    async def read() -> None:
        async with agent(url).run_stream("fail midway") as result:
            await result.get_output()

    with pytest.raises(Exception, match="no base-model"):
        asyncio.run(read())
