"""A hot loadout is composed beside the running engine, and nobody can tell by the answers."""

import json
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch

from taskvectors.format import write_vector
from taskvectors.vector import SparseDelta, TaskVector
from tests.end_to_end.conftest import Gateway, serving
from tests.end_to_end.oracle import Oracle
from tests.end_to_end.synthetic import Maker, Synthetic
from tests.end_to_end.test_truth import PROMPTS, TOLERANCE, Mix, check, gather

pytestmark = pytest.mark.slow

SEED = 500
LAYERS = range(8, 10)
DENSITY = 0.2
"""Four vectors of a fifth overlap by a quarter of their nonzeros."""
SCALE = 0.06
"""Enough that each loadout writes another text."""
POOL = "80MiB"
"""Room for the vectors and what is composed of them; the two fillers put both out."""
DEADLINE_S = 60.0
WEIGHTS = {"hot0": 1.0, "hot1": 0.6, "hot2": -0.5, "hot3": 0.8}
OTHER = {"hot0": 0.7, "hot1": -0.4}
Answers = list[openai.types.Completion]


def _draw(maker: Maker, folder: Path, name: str, seed: int, layers: range, density: float) -> Any:
    """A vector on the linear weights of some layers."""
    generator = np.random.default_rng(SEED + seed)
    parts, deltas = {}, {}
    for parameter in maker.linears(layers):
        shape = maker._shapes[parameter]
        index = np.flatnonzero(generator.random(shape[0] * shape[1]) < density)
        values = (SCALE * generator.standard_normal(len(index))).astype(np.float32)
        parts[parameter] = SparseDelta(shape, index, values)
        dense = torch.zeros(shape[0] * shape[1])
        dense[torch.from_numpy(index)] = torch.from_numpy(values)
        deltas[parameter] = dense.view(shape)
    path = folder / f"{name}.safetensors"
    write_vector(TaskVector(base=maker._base, parameters=parts), path)
    return Synthetic(name, path, deltas)


@pytest.fixture(scope="module")
def skills(maker: Maker, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Synthetic]:
    """Four that overlap, and two that fill the pool."""
    print(f"seed {SEED}")
    folder = tmp_path_factory.mktemp("placed")
    made = [_draw(maker, folder, name, i, LAYERS, DENSITY) for i, name in enumerate(WEIGHTS)]
    made += [_draw(maker, folder, f"fill{i}", 10 + i, range(4), 0.55) for i in range(2)]
    return {vector.name: vector for vector in made}


@pytest.fixture(scope="module")
def mixes(skills: Mapping[str, Synthetic]) -> dict[str, Mix]:
    """What is asked, and as the oracle merges it."""
    loadouts = {"hot": WEIGHTS, "other": OTHER, "base": {}}
    return {
        name: Mix(weights, [(skills[skill].deltas, w, None) for skill, w in weights.items()])
        for name, weights in loadouts.items()
    }


@pytest.fixture(scope="module")
def server(
    base_dir: Path, skills: Mapping[str, Synthetic], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """A gateway that composes hot loadouts."""
    folder = tmp_path_factory.mktemp("placement")
    options = ("--placement", "auto", "--pool-bytes", POOL, "--allow-promotions")
    with serving(base_dir, "placement", folder, *options, "--max-model-len", "512") as running:
        for vector in skills.values():
            running.upload(vector)
        yield running


@dataclass(frozen=True)
class Heated:
    """Answers to PROMPTS before the loadout was composed, while it was, and after."""

    before: Answers
    meanwhile: list[Answers]
    after: Answers


@pytest.fixture(scope="module")
def heated(server: Gateway, mixes: dict[str, Mix]) -> Heated:
    """Four requests at once, again and again, until one is served composed."""

    def ask() -> Answers:
        return gather(server, [(prompt, mixes["hot"].task_vectors) for prompt in PROMPTS])

    before, meanwhile = ask(), []
    assert _placement(server)["requests"] == 0
    deadline = time.monotonic() + DEADLINE_S
    while not _placement(server)["requests"]:
        assert time.monotonic() < deadline, _placement(server)
        meanwhile.append(ask())
    return Heated(before, meanwhile, ask())


def _placement(server: Gateway) -> dict[str, Any]:
    stats: Any = server.get("/v1/store/stats")[1]
    return dict(stats["engine"]["placement"])


def _check_all(oracle: Oracle, mix: Mix, answers: Answers, where: str) -> None:
    with oracle.merged(mix.weighted):
        errors = [check(oracle, p, a, where) for p, a in zip(PROMPTS, answers, strict=True)]
    print(f"{where}: largest |Δlogprob| {max(errors):.1e}")


def test_the_composed_form_answers_as_the_dense_merge(
    server: Gateway, oracle: Oracle, mixes: dict[str, Mix], heated: Heated
) -> None:
    """As the plain form did: the same tokens and log probabilities, with the same names on them."""
    assert _placement(server)["decisions"]["composed"] >= len(PROMPTS)
    _check_all(oracle, mixes["hot"], heated.before, "plain")
    _check_all(oracle, mixes["hot"], heated.after, "composed")
    for plain, composed in zip(heated.before, heated.after, strict=True):
        assert plain.model == composed.model
        assert plain.model_extra["task_vectors"] == composed.model_extra["task_vectors"]


def test_nothing_happens_to_requests_around_the_change(heated: Heated) -> None:
    """Whichever form served them: the same tokens, and log probabilities within the tolerance."""
    assert heated.meanwhile
    for answers in heated.meanwhile:
        for first, answer in zip(heated.before, answers, strict=True):
            one, two = first.choices[0].logprobs, answer.choices[0].logprobs
            assert one.tokens == two.tokens
            np.testing.assert_allclose(one.token_logprobs, two.token_logprobs, atol=TOLERANCE)


@pytest.mark.usefixtures("heated")
def test_others_over_the_same_vectors_stay_right_in_one_batch(
    server: Gateway, oracle: Oracle, mixes: dict[str, Mix]
) -> None:
    """A plain loadout and the base beside the composed one, each with every prompt."""
    composed = _placement(server)["requests"]
    asked = [(prompt, mix.task_vectors) for mix in mixes.values() for prompt in PROMPTS]
    answers = gather(server, asked)
    for number, (name, mix) in enumerate(mixes.items()):
        own = answers[number * len(PROMPTS) : (number + 1) * len(PROMPTS)]
        _check_all(oracle, mix, own, name)
    assert _placement(server)["requests"] == composed + len(PROMPTS)
    assert len({answer.choices[0].text for answer in answers[:: len(PROMPTS)]}) == len(mixes)


@pytest.mark.usefixtures("heated")
def test_prometheus_is_told(server: Gateway) -> None:
    """Decisions by reason, compositions, failures and requests."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    numbers = dict(line.rsplit(" ", 1) for line in lines if line.startswith("outfitter_placement"))
    assert float(numbers["outfitter_placement_compositions_total"]) == 1
    assert float(numbers["outfitter_placement_failures_total"]) == 0
    assert float(numbers["outfitter_placement_loadouts"]) == 1
    composed = 'outfitter_placement_decisions_total{reason="composed"}'
    assert numbers[composed] == numbers["outfitter_placement_requests_total"]
    assert float(numbers[composed]) >= len(PROMPTS)


@pytest.mark.usefixtures("heated")
def test_a_promotion_puts_the_plain_form_back(
    server: Gateway, oracle: Oracle, mixes: dict[str, Mix]
) -> None:
    """While one of its vectors is in the weights it is served plain, and right; after it composed,
    and right."""
    asked = [(prompt, mixes["hot"].task_vectors) for prompt in PROMPTS]
    before = _placement(server)
    _promote(server, {"hot0": 1.0})
    try:
        _check_all(oracle, mixes["hot"], gather(server, asked), "promoted")
        found = _placement(server)
        assert found["decisions"]["promoted"] == len(PROMPTS)
        assert found["requests"] == before["requests"]
    finally:
        _promote(server, None)
    _check_all(oracle, mixes["hot"], gather(server, asked), "demoted")
    assert _placement(server)["requests"] == before["requests"] + len(PROMPTS)


def _promote(server: Gateway, weights: Mapping[str, float] | None) -> None:
    """None demotes."""
    body = None if weights is None else json.dumps({"task_vectors": weights}).encode()
    request = urllib.request.Request(
        f"{server.url}/v1/promotions",
        data=body,
        headers={"content-type": "application/json"},
        method="DELETE" if weights is None else "POST",
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        assert answer.status == 200


@pytest.mark.usefixtures("heated")
def test_an_evicted_form_is_no_error(
    server: Gateway, oracle: Oracle, mixes: dict[str, Mix]
) -> None:
    """Two large vectors need the whole pool; then the hot loadout is served plain, and right."""
    gather(server, [("Hi", {"fill0": 0.1, "fill1": 0.1})], tokens=1)
    answers = gather(server, [(prompt, mixes["hot"].task_vectors) for prompt in PROMPTS])
    _check_all(oracle, mixes["hot"], answers, "evicted")
    found = _placement(server)
    assert found["decisions"]["not_resident"] >= 1
    assert found["failures"] == 0
