"""A promoted loadout is the resident base, and all other loadouts stay what they were."""

import asyncio
import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from safetensors.torch import load_file, save_file

from taskvectors.format import write_vector
from taskvectors.vector import BaseInfo, DenseDelta, TaskVector
from tests.end_to_end.conftest import Gateway, outfitter, serving
from tests.end_to_end.oracle import Oracle
from tests.end_to_end.synthetic import Maker, Synthetic
from tests.end_to_end.test_truth import LONG_PROMPT, PROMPTS, Mix, check, complete, gather

WEIGHTS = {"full": 0.8, "lowrank": 0.5}
"""Every parameter changes: embedding, tied head, norms, fused and single linear layers."""
TOGETHER = PROMPTS[:2]
ALONE = (*TOGETHER, LONG_PROMPT)


@pytest.fixture
def promoting(gateway: Gateway) -> Iterator[Gateway]:
    """The gateway of all tests, which serves the base again after each."""
    yield gateway
    if ask(gateway, "GET")["promoted"]:
        ask(gateway, "DELETE")


def ask(gateway: Gateway, method: str, body: object = None, query: str = "") -> dict[str, Any]:
    """A good answer of /v1/promotions."""
    request = urllib.request.Request(
        f"{gateway.url}/v1/promotions{query}",
        data=None if body is None else json.dumps(body).encode(),
        method=method,
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return dict(json.load(answer))


def logprobs(answers: list[openai.types.Completion]) -> list[object]:
    """Tokens and exact log probabilities."""
    return [(a.choices[0].logprobs.tokens, a.choices[0].logprobs.token_logprobs) for a in answers]


def one_by_one(gateway: Gateway, task_vectors: object = None) -> list[openai.types.Completion]:
    """Each prompt alone, so that the batch is the same each time; the last one is long."""
    return [gather(gateway, [(prompt, task_vectors)])[0] for prompt in ALONE]


@pytest.fixture(scope="module")
def mixes(vectors: dict[str, Synthetic]) -> dict[str, Mix]:
    """What is promoted, a part of it, and others."""
    low, sparse, full = (vectors[name].deltas for name in ("lowrank", "sparse", "full"))
    layers = [{"name": "lowrank", "weight": 1.0, "layers": {"0-14": 0.5}}, {"name": "sparse"}]

    def upper_half(name: str) -> float:
        return 0.5 if int(name.split(".")[2]) <= 14 else 0.0

    return {
        "the promoted one": Mix(WEIGHTS, [(full, 0.8, None), (low, 0.5, None)]),
        "a part of it": Mix({"full": 0.3}, [(full, 0.3, None)]),
        "another": Mix({"sparse": 1.0}, [(sparse, 1.0, None)]),
        "by layers": Mix(layers, [(low, 1.0, upper_half), (sparse, 1.0, None)]),
    }


def test_a_promoted_loadout_is_the_base_until_it_is_demoted(
    promoting: Gateway, oracle: Oracle, mixes: dict[str, Mix]
) -> None:
    """Merged truth while promoted, for all loadouts; after it the base's very bits."""
    state = ask(promoting, "GET", query="?checksum=true")
    assert state["promoted"] is False
    weights = state["sha256_weights"]
    before = logprobs(one_by_one(promoting))
    explicit = mixes["the promoted one"]
    gather(promoting, [(LONG_PROMPT, explicit.task_vectors), (LONG_PROMPT, None)], tokens=2)

    state = ask(promoting, "POST", {"task_vectors": WEIGHTS})
    print({key: state[key] for key in ("num_tensors", "saved_bytes", "seconds")})
    assert state["promoted"] is True
    assert state["sha256_before"] != state["sha256_promoted"]
    assert ask(promoting, "GET")["loadout"] == state["loadout"]
    with oracle.merged(explicit.weighted):
        for prompt, answer in zip(ALONE, one_by_one(promoting), strict=True):
            check(oracle, prompt, answer, f"promoted, {prompt[:20]!r}")
    asked = [(p, m.task_vectors) for m in (*mixes.values(), Mix(None, [])) for p in TOGETHER]
    answers = iter(gather(promoting, asked))
    for name, mix in mixes.items():
        with oracle.merged(mix.weighted):
            errors = [check(oracle, prompt, next(answers), name) for prompt in TOGETHER]
            print(f"{name}: largest |Δlogprob| {max(errors):.1e}")
    with oracle.merged(explicit.weighted):
        for prompt in TOGETHER:
            check(oracle, prompt, next(answers), "none named, in a mixed batch")

    state = ask(promoting, "DELETE")
    assert state["promoted"] is False
    assert state["sha256_restored"] == state["sha256_before"]
    assert ask(promoting, "GET", query="?checksum=true")["sha256_weights"] == weights
    assert logprobs(one_by_one(promoting)) == before


async def _until_running(gateway: Gateway, number: int) -> None:
    """Until the engine decodes so many requests."""
    async with asyncio.timeout(60):
        while True:
            if await asyncio.to_thread(_num_running, gateway) >= number:
                return
            await asyncio.sleep(0.01)


def _num_running(gateway: Gateway) -> float:
    with urllib.request.urlopen(f"{gateway.url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found = [line for line in lines if line.startswith("vllm:num_requests_running{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


async def _promoted_meanwhile(
    gateway: Gateway, tokens: int
) -> tuple[list[openai.types.Completion], bool] | None:
    """Two answers of so many tokens that began before a promotion, and two that began during it.

    And whether the first of these had ended before it. None where there was nothing to wait for.
    """
    async with gateway.client() as client:

        def start(prompt: str, mix: object, tokens: int) -> asyncio.Task[Any]:
            return asyncio.create_task(complete(client, gateway.model, prompt, mix, tokens))

        running = [start(PROMPTS[0], None, tokens), start(PROMPTS[1], {"sparse": 1.0}, tokens)]
        await _until_running(gateway, 2)
        body = {"task_vectors": WEIGHTS}
        promotion = asyncio.create_task(asyncio.to_thread(ask, gateway, "POST", body))
        while not (await asyncio.to_thread(ask, gateway, "GET"))["is_changing"]:
            if promotion.done():
                break
            await asyncio.sleep(0.01)
        has_waited = not any(task.done() for task in (promotion, *running))
        meanwhile = [start(PROMPTS[2], None, 8), start(PROMPTS[3], {"sparse": 1.0}, 8)]
        state = await promotion
        assert state["promoted"] is True
        was_early = meanwhile[0].done()
        answers = await asyncio.gather(*running, *meanwhile)
        return (answers, was_early) if has_waited else None


def _is_true(oracle: Oracle, prompt: str, answer: openai.types.Completion) -> bool:
    try:
        check(oracle, prompt, answer, "came meanwhile, and early")
    except AssertionError:
        return False
    return True


def test_requests_wait_and_none_fails(
    promoting: Gateway, oracle: Oracle, mixes: dict[str, Mix]
) -> None:
    """Those that run finish on the weights they began with; those that come meanwhile wait."""
    for tokens in (256, 600, 1200):  # on a busy machine the promotion begins late
        found = asyncio.run(_promoted_meanwhile(promoting, tokens))
        if found is not None:
            break
        ask(promoting, "DELETE")
    assert found is not None, "the requests ended before the promotion began"
    (base, sparse, meanwhile, still_sparse), was_early = found
    check(oracle, PROMPTS[0], base, "began before")
    # It may have slipped in before the engine heard of the promotion.
    is_base = was_early and _is_true(oracle, PROMPTS[2], meanwhile)
    with oracle.merged(mixes["another"].weighted):
        check(oracle, PROMPTS[1], sparse, "another, began before")
        check(oracle, PROMPTS[3], still_sparse, "another, came meanwhile")
    if not is_base:
        with oracle.merged(mixes["the promoted one"].weighted):
            check(oracle, PROMPTS[2], meanwhile, "came meanwhile")
    ask(promoting, "DELETE")


def test_a_composed_loadout_is_promoted(promoting: Gateway, vectors: dict[str, Synthetic]) -> None:
    """One vector with weight 1: the same answers as by request, and another takes its place."""
    ties = {"vectors": {"sparse": 1.0, "lowrank": 0.6}, "method": "ties", "density": 0.04}
    by_request = gather(promoting, [(prompt, ties) for prompt in PROMPTS])
    state = ask(promoting, "POST", {"task_vectors": ties})
    assert state["resolved"]["method"] == "ties"
    promoted = gather(promoting, [(prompt, None) for prompt in PROMPTS])
    for asked, answer in zip(by_request, promoted, strict=True):
        assert asked.choices[0].text == answer.choices[0].text
    assert ask(promoting, "POST", {"task_vectors": {"sparse": 1.0}})["promoted"] is True
    assert ask(promoting, "DELETE")["sha256_restored"]


def test_a_promotion_that_fails_changes_nothing(
    promoting: Gateway, maker: Maker, tmp_path: Path
) -> None:
    """A sum beyond float32 is refused by name, in the middle of the work."""
    values = {"model.layers.0.input_layernorm.weight": np.full(576, 6e4, np.float32)}
    values["model.norm.weight"] = np.full(576, 3.4e38, np.float32)
    path = tmp_path / "huge"
    base = BaseInfo("base", maker._base.fingerprint)
    write_vector(TaskVector(base, {n: DenseDelta(v) for n, v in values.items()}), path)
    promoting.upload(Synthetic("huge", path, {}))
    weights = ask(promoting, "GET", query="?checksum=true")["sha256_weights"]
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(promoting, "POST", {"task_vectors": {"huge": 1.0}})
    assert caught.value.code == 422
    state = ask(promoting, "GET", query="?checksum=true")
    assert (state["promoted"], state["sha256_weights"]) == (False, weights)
    assert promoting.ask({"sparse": 0.5})["choices"]


def test_the_command_line_promotes_and_demotes(promoting: Gateway) -> None:
    told = json.loads(outfitter("promote", "sparse=0.5", "--url", promoting.url, "--json"))
    assert told["promoted"] is True
    assert ask(promoting, "GET")["loadout"] == told["loadout"]
    told = json.loads(outfitter("demote", "--url", promoting.url, "--json"))
    assert told["promoted"] is False


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_promoted_weights_are_those_of_a_merged_checkpoint(
    dtype: str, base_dir: Path, vectors: dict[str, Synthetic], tmp_path: Path
) -> None:
    """To the bit, and so are the answers; and the base's again after demotion."""
    limits = ("--max-model-len", "2048", "--allow-promotions", "--dtype", dtype)
    with serving(base_dir, "base", tmp_path, *limits) as gateway:
        gateway.upload(vectors["full"])
        before = ask(gateway, "GET", query="?checksum=true")["sha256_weights"], answers_of(gateway)
        ask(gateway, "POST", {"task_vectors": {"full": 0.8}})
        promoted = ask(gateway, "GET", query="?checksum=true")["sha256_weights"]
        answers = answers_of(gateway)
        ask(gateway, "DELETE")
        restored = ask(gateway, "GET", query="?checksum=true")["sha256_weights"]
        assert (restored, answers_of(gateway)) == before
        assert answers != before[1]
    merge(base_dir, tmp_path / "merged", vectors["full"], 0.8, getattr(torch, dtype))
    with serving(tmp_path / "merged", "merged", tmp_path, *limits) as gateway:
        assert ask(gateway, "GET", query="?checksum=true")["sha256_weights"] == promoted
        assert answers_of(gateway) == answers


def answers_of(gateway: Gateway) -> list[object]:
    """What is answered to each prompt alone."""
    return logprobs(one_by_one(gateway))


def merge(base: Path, target: Path, vector: Synthetic, weight: float, dtype: torch.dtype) -> None:
    """Write the checkpoint base + weight · vector: of the base as it is served, added in float32,
    and rounded once.
    """
    shutil.copytree(base, target, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(base / "model.safetensors")
    for name, delta in vector.deltas.items():
        tensors[name] = (tensors[name].to(dtype).float() + delta * weight).to(dtype)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})


@pytest.mark.slow
def test_a_thousand_cycles_of_the_engine_change_no_bit(promoting: Gateway, maker: Maker) -> None:
    """Fused and single layers, packed and read back each time."""
    promoting.upload(maker.sparse("cycled", 90, 0.1, maker.linears(range(3, 4))))
    before = ask(promoting, "GET", query="?checksum=true")["sha256_weights"]
    engine = max(promoting.engine_processes(), key=lambda process: process.memory_info().rss)
    memory = []
    for cycle in range(1000):
        ask(promoting, "POST", {"task_vectors": {"cycled": 1.0}})
        ask(promoting, "DELETE")
        if cycle % 100 == 99:
            memory.append(engine.memory_info().rss >> 20)
    print(f"MiB of the engine after each hundred: {memory}")
    assert memory[-1] - memory[1] < 32, "each promotion leaves memory behind"
    assert ask(promoting, "GET", query="?checksum=true")["sha256_weights"] == before
