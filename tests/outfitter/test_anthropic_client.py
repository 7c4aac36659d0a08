"""Anthropic's own Python client against the gateway, in front of the stand-in engine."""

from collections.abc import Iterator

import anthropic
import pytest

from tests.outfitter.harness import Running, make_vector, push

ASK = [{"role": "user", "content": "go"}]
BOT = "claude/bot"


@pytest.fixture(scope="module")
def sdk(
    gateway: Running, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[anthropic.Anthropic]:
    with gateway.client as client:
        push(client, make_vector(tmp_path_factory.mktemp("a") / "v", seed=601), "claude/json")
        saved = {"name": BOT, "task_vectors": {"claude/json": 0.5}}
        assert client.post("/v1/loadouts", json=saved).status_code == 201
        with anthropic.Anthropic(base_url=gateway.url, api_key="none", max_retries=0) as found:
            yield found
        client.delete(f"/v1/loadouts/{BOT}")
        client.delete("/v1/task_vectors/claude/json")


def test_a_message(sdk: anthropic.Anthropic) -> None:
    """Of a saved loadout, under its name."""
    answer = sdk.messages.create(model=BOT, messages=ASK, max_tokens=9)
    assert (answer.model, answer.stop_reason) == (BOT, "end_turn")
    assert answer.model_extra["task_vectors"]["saved"]["name"] == BOT


def test_a_message_is_streamed(sdk: anthropic.Anthropic) -> None:
    """The helper puts it together again."""
    with sdk.messages.stream(model=BOT, messages=ASK, max_tokens=9) as stream:
        words = list(stream.text_stream)
        final = stream.get_final_message()
    assert (words[0], words[-1], final.model) == ("one", "three", BOT)


def test_tokens_are_counted(sdk: anthropic.Anthropic) -> None:
    """Before anything is asked."""
    assert sdk.messages.count_tokens(model=BOT, messages=ASK).input_tokens == 2


def test_failures_raise_their_class(sdk: anthropic.Anthropic) -> None:
    """Those of the gateway, and one amid a stream."""
    with pytest.raises(anthropic.NotFoundError, match="nobody"):
        sdk.messages.create(model="nobody", messages=ASK, max_tokens=9)
    extra = {"task_vectors": {"claude/json": 1}}
    with pytest.raises(anthropic.BadRequestError, match="takes no task_vectors"):
        sdk.messages.create(model=BOT, messages=ASK, max_tokens=9, extra_body=extra)
    failing = [{"role": "user", "content": "fail midway"}]
    with pytest.raises(anthropic.APIStatusError, match=f"no {BOT}"):
        list(sdk.messages.create(model=BOT, messages=failing, max_tokens=9, stream=True))
