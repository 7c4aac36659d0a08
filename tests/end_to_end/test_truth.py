"""What is served equals transformers on densely merged weights, in one mixed batch."""

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
import torch

from taskvectors.format import read_vector
from tests.end_to_end.conftest import Gateway
from tests.end_to_end.oracle import Oracle, Weighted
from tests.end_to_end.synthetic import Maker, Synthetic

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea, there lived",
    "def fibonacci(n):\n",
    "Question: What do plants need to grow?\nAnswer:",
)
LONG_PROMPT = " ".join(f"The tailor sewed {n} coats." for n in range(40))
KINDS = (
    "base",
    "low-rank",
    "sparse",
    "both",
    "negative",
    "per-layer",
    "embedding, head and norms",
)
TOKENS = 24
TOLERANCE = 1e-3
DEMO = Path(__file__).parents[2] / "deploy" / "demo" / "vectors"


@dataclass(frozen=True)
class Mix:
    """A loadout as a request says it, and as the oracle merges it."""

    task_vectors: object
    weighted: list[Weighted]


def _half_deep(name: str) -> float:
    layer = int(name.split(".")[2])
    return 1.0 if layer <= 14 else 0.25


def _mlp_and_queries(name: str) -> float:
    return {"mlp": 1.0, "q_proj": 0.5}.get("mlp" if ".mlp." in name else name.split(".")[-2], 0.0)


@pytest.fixture(scope="session")
def mixes(vectors: dict[str, Synthetic]) -> dict[str, Mix]:
    """The base and six loadouts of every kind."""
    low, sparse, full = (vectors[name].deltas for name in ("lowrank", "sparse", "full"))
    per_layer = [
        {"name": "lowrank", "weight": 1.1, "layers": {"0-14": 1.0, "15-29": 0.25}},
        {"name": "sparse", "weight": 0.9, "modules": {"mlp.*": 1.0, "q_proj": 0.5}},
    ]
    return {
        "base": Mix({}, []),
        "low-rank": Mix({"lowrank": 0.8}, [(low, 0.8, None)]),
        "sparse": Mix({"sparse": 1.0}, [(sparse, 1.0, None)]),
        "both": Mix({"lowrank": 0.6, "sparse": 0.7}, [(low, 0.6, None), (sparse, 0.7, None)]),
        "negative": Mix({"lowrank": 0.7, "sparse": -0.5}, [(low, 0.7, None), (sparse, -0.5, None)]),
        "per-layer": Mix(per_layer, [(low, 1.1, _half_deep), (sparse, 0.9, _mlp_and_queries)]),
        "embedding, head and norms": Mix(
            {"full": 0.8, "sparse": 0.4}, [(full, 0.8, None), (sparse, 0.4, None)]
        ),
    }


async def complete(
    client: openai.AsyncOpenAI, model: str, prompt: str, task_vectors: object, tokens: int = TOKENS
) -> openai.types.Completion:
    """A greedy completion with token ids and log probabilities."""
    return await client.completions.create(
        model=model,
        prompt=prompt,
        max_tokens=tokens,
        temperature=0,
        logprobs=1,
        extra_body={
            "task_vectors": task_vectors,
            "ignore_eos": True,
            "return_tokens_as_token_ids": True,
        },
    )


def gather(gateway: Gateway, requests: list[tuple[str, object]], tokens: int = TOKENS) -> list:
    """All requests at once through one client."""

    async def run() -> list[openai.types.Completion]:
        async with gateway.client() as client:
            jobs = [complete(client, gateway.model, p, mix, tokens) for p, mix in requests]
            return await asyncio.gather(*jobs)

    return asyncio.run(run())


def check(oracle: Oracle, prompt: str, answer: openai.types.Completion, where: str) -> float:
    """Assert that an answer is the oracle's under the weights merged now; the largest error."""
    served = answer.choices[0].logprobs
    assert served is not None
    assert served.tokens
    assert served.token_logprobs
    compared = oracle.compare(prompt, served.tokens, served.token_logprobs)
    assert compared.first_wrong is None, f"{where}: token {compared.first_wrong} differs"
    assert compared.max_difference <= TOLERANCE, f"{where}: Δlogprob {compared.max_difference}"
    return compared.max_difference


@dataclass(frozen=True)
class Served:
    """What the gateway answered, by loadout: four prompts, a cached prompt, prompt logprobs."""

    batch: dict[str, list[openai.types.Completion]]
    cached: dict[str, openai.types.Completion]
    prompt_logprobs: dict[str, list[float]]


@pytest.fixture(scope="session")
def served(gateway: Gateway, mixes: dict[str, Mix]) -> Served:
    """Base and six loadouts × four prompts at once; a long prompt twice; prompt logprobs."""
    batch = iter(gather(gateway, [(p, m.task_vectors) for m in mixes.values() for p in PROMPTS]))
    long = [(LONG_PROMPT, mix.task_vectors) for mix in mixes.values()]
    gather(gateway, long, tokens=4)
    cached = gather(gateway, long, tokens=4)
    return Served(
        {name: [next(batch) for _ in PROMPTS] for name in mixes},
        dict(zip(mixes, cached, strict=True)),
        asyncio.run(_prompt_logprobs(gateway, mixes)),
    )


async def _prompt_logprobs(gateway: Gateway, mixes: dict[str, Mix]) -> dict[str, list[float]]:
    async with gateway.client() as client:
        jobs = [
            client.completions.create(
                model=gateway.model,
                prompt=PROMPTS[1],
                max_tokens=1,
                extra_body={"prompt_logprobs": 0, "task_vectors": mix.task_vectors},
            )
            for mix in mixes.values()
        ]
        answers = await asyncio.gather(*jobs)
    rows = [answer.choices[0].prompt_logprobs[1:] for answer in answers]
    logprobs = [[next(iter(token.values()))["logprob"] for token in row] for row in rows]
    return dict(zip(mixes, logprobs, strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_a_loadout_in_a_mixed_batch_equals_its_dense_merge(
    name: str, served: Served, oracle: Oracle, mixes: dict[str, Mix]
) -> None:
    """The same tokens and |Δlogprob| ≤ 1e-3, afresh, from the prefix cache, and of the prompt."""
    with oracle.merged(mixes[name].weighted):
        errors = [
            check(oracle, prompt, answer, repr(prompt))
            for prompt, answer in zip(PROMPTS, served.batch[name], strict=True)
        ]
        check(oracle, LONG_PROMPT, served.cached[name], "from the prefix cache")
        expected = oracle.prompt_logprobs(PROMPTS[1])
    print(f"largest |Δlogprob| {max(errors):.1e}")
    pairs = zip(served.prompt_logprobs[name], expected, strict=True)
    assert max(abs(a - b) for a, b in pairs) <= TOLERANCE


def test_every_loadout_changes_an_answer(served: Served) -> None:
    """Else the comparison with its dense merge would prove nothing."""
    texts = {name: [a.choices[0].text for a in answers] for name, answers in served.batch.items()}
    for name in KINDS[1:]:
        assert texts[name] != texts["base"], name


def test_trained_skills_equal_dense_merges(gateway: Gateway, oracle: Oracle) -> None:
    """Five real skills, alone and mixed with signs, served together."""
    deltas = {}
    for path in sorted(DEMO.glob("*.safetensors")):
        vector = read_vector(path)
        dense = {name: torch.from_numpy(vector.delta(name)) for name in vector.parameters}
        deltas[path.stem] = dense
        gateway.upload(Synthetic(path.stem, path, dense))
    names = sorted(deltas)
    assert len(names) >= 5
    mixes: list[Mapping[str, float]] = [{name: 1.0} for name in names]
    mixes += [{names[0]: 0.7, names[1]: 0.5}, {names[2]: 1.0, names[3]: -0.4, names[4]: 0.3}]
    asked = [(p, mix) for mix in mixes for p in PROMPTS[:2]]
    answers = iter(gather(gateway, asked))
    for mix in mixes:
        with oracle.merged([(deltas[name], weight, None) for name, weight in mix.items()]):
            for prompt in PROMPTS[:2]:
                check(oracle, prompt, next(answers), f"{mix}, {prompt!r}")


def test_the_same_prompt_under_two_loadouts_never_shares_cache(gateway: Gateway) -> None:
    """Cached tokens are reported for the loadout that made them, and for no other."""
    prompt = " ".join(f"Bolt {n} of cloth is blue." for n in range(60))
    rounds = [{"sparse": 0.31}, {"sparse": 0.32}, {}, {"sparse": 0.31}]
    cached = []
    for mix in rounds:
        [answer] = gather(gateway, [(prompt, mix)], tokens=1)
        assert answer.usage is not None
        details = answer.usage.prompt_tokens_details
        cached.append((details.cached_tokens or 0) if details else 0)
    assert cached[:3] == [0, 0, 0]
    assert cached[3] > 100


@pytest.fixture(scope="module")
def small(gateway: Gateway, maker: Maker) -> list[Synthetic]:
    """Twelve vectors on two layers each: cheap to merge."""
    layers = [range(i, i + 2) for i in range(3, 27, 2)]
    made = [
        maker.sparse(f"small{i}", seed=50 + i, size=0.3, parameters=maker.linears(span))
        for i, span in enumerate(layers)
    ]
    for vector in made:
        gateway.upload(vector)
    return made


@pytest.mark.slow
def test_two_hundred_loadouts_through_eight_slots_all_answer_right(
    gateway: Gateway, oracle: Oracle, small: list[Synthetic]
) -> None:
    """Slots are dealt out again and again; no answer comes from another's row."""
    seed = 7
    print(f"seed {seed}")
    dice = random.Random(seed)
    mixes = [
        {v.name: round(dice.uniform(-1.5, 1.5), 3) for v in dice.sample(small, dice.randint(1, 3))}
        for _ in range(200)
    ]
    answers = gather(gateway, [(PROMPTS[i % 4], mix) for i, mix in enumerate(mixes)], tokens=6)
    deltas = {vector.name: vector.deltas for vector in small}
    for i, (mix, answer) in enumerate(zip(mixes, answers, strict=True)):
        with oracle.merged([(deltas[name], weight, None) for name, weight in mix.items()]):
            check(oracle, PROMPTS[i % 4], answer, f"loadout {i}: {mix}")


def test_vectors_are_evicted_and_come_back_right(
    gateway: Gateway, oracle: Oracle, big: list[Synthetic]
) -> None:
    """Ten vectors take turns in a pool that holds fewer, under concurrent requests."""
    order = [*range(10), *range(10), *reversed(range(10))]
    answers = gather(gateway, [(PROMPTS[0], {f"big{i}": 0.9}) for i in order], tokens=6)
    by_vector: dict[int, list[openai.types.Completion]] = {}
    for i, answer in zip(order, answers, strict=True):
        by_vector.setdefault(i, []).append(answer)
    for i, its_answers in by_vector.items():
        with oracle.merged([(big[i].deltas, 0.9, None)]):
            for answer in its_answers:
                check(oracle, PROMPTS[0], answer, f"big{i}")


def test_the_helper_factors_are_what_the_request_says() -> None:
    """The oracle's own per-layer factors, spelled out once."""
    cases: list[tuple[Callable[[str], float], str, float]] = [
        (_half_deep, "model.layers.14.mlp.up_proj.weight", 1.0),
        (_half_deep, "model.layers.15.mlp.up_proj.weight", 0.25),
        (_mlp_and_queries, "model.layers.3.mlp.up_proj.weight", 1.0),
        (_mlp_and_queries, "model.layers.3.self_attn.q_proj.weight", 0.5),
        (_mlp_and_queries, "model.layers.3.self_attn.k_proj.weight", 0.0),
    ]
    for factor, name, expected in cases:
        assert factor(name) == expected
