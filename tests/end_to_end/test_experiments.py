"""An experiment on a real engine: variants share one batch, and each says what its mix says."""

import asyncio
import itertools
import operator
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.end_to_end.conftest import CLIENT_TIMEOUT_S, PROMPT, Gateway

NAME = "chat/tone"
MIXES: dict[str, Any] = {
    "plain": {},
    "warm": {"lowrank": 0.7},
    "cold": {"lowrank": -0.4, "sparse": 0.5},
}
ASKED = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "logprobs": 1}


@pytest.fixture(scope="module")
def experiment(gateway: Gateway) -> Iterator[str]:
    """A running one, whose control is the base and one variant a saved model."""
    with httpx.Client(base_url=gateway.url, timeout=CLIENT_TIMEOUT_S) as client:
        client.post("/v1/loadouts", json={"name": "chat/warm", "task_vectors": MIXES["warm"]})
        variants = [
            {"key": "plain", "model": gateway.model},
            {"key": "warm", "model": "chat/warm"},
            {"key": "cold", "task_vectors": MIXES["cold"]},
        ]
        body = {"name": NAME, "variants": variants}
        made = client.post("/v1/experiments", json=body)
        assert made.status_code == 201, made.text
        started = client.post(f"/v1/experiments/{NAME}/start")
        assert started.status_code == 200, started.text
        yield f"exp:{NAME}"
        client.post(f"/v1/experiments/{NAME}/stop")
        client.delete(f"/v1/experiments/{NAME}")
        client.delete("/v1/loadouts/chat/warm")


def said(answer: httpx.Response) -> tuple[str, list[float]]:
    """Text and log probabilities."""
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    return choice["text"], choice["logprobs"]["token_logprobs"]


async def ask_all(url: str, bodies: list[dict[str, Any]]) -> tuple[list[httpx.Response], bool]:
    """The answers, and whether all were under way at one time."""
    spans: list[tuple[float, float]] = []

    async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
        began = time.monotonic()
        answer = await client.post("/v1/completions", json={**ASKED, **body})
        spans.append((began, time.monotonic()))
        return answer

    async with httpx.AsyncClient(base_url=url, timeout=CLIENT_TIMEOUT_S) as client:
        answers = await asyncio.gather(*(ask(client, body) for body in bodies))
    return answers, max(start for start, _ in spans) < min(end for _, end in spans)


def test_variants_in_one_batch_answer_as_the_loadouts_they_stand_for(
    gateway: Gateway, experiment: str
) -> None:
    """Every user gets the text and the log probabilities of the mix that the answer names."""
    mixes = [{"model": gateway.model, "task_vectors": mix} for mix in MIXES.values()]
    alone, _ = asyncio.run(ask_all(gateway.url, mixes))
    expected = dict(zip(MIXES, map(said, alone), strict=True))
    digests = {
        key: one.headers["x-outfitter-loadout"] for key, one in zip(MIXES, alone, strict=True)
    }
    for one, other in itertools.combinations(expected.values(), 2):
        assert max(map(abs, map(operator.sub, one[1], other[1]))) > 1e-3
    users = [{"model": experiment, "user": f"user-{number}"} for number in range(12)]
    answers, is_one_batch = asyncio.run(ask_all(gateway.url, users))
    assert is_one_batch
    seen = set()
    for answer in answers:
        told = answer.json()["experiment"]
        variant = told["variant"]
        assert told["counted"]
        assert answer.headers["x-outfitter-variant"] == f"{NAME}@2/{variant}"
        assert answer.headers["x-outfitter-loadout"] == digests[variant]
        text, logprobs = said(answer)
        assert text == expected[variant][0]
        assert logprobs == pytest.approx(expected[variant][1], abs=1e-4)
        seen.add(variant)
    assert seen == MIXES.keys()
    again, _ = asyncio.run(ask_all(gateway.url, users))
    assert [one.headers["x-outfitter-variant"] for one in again] == [
        one.headers["x-outfitter-variant"] for one in answers
    ]
