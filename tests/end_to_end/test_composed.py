"""Loadouts of other methods: served as mergekit or PEFT merges them, composed beside the engine."""

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest import mock

import numpy as np
import openai
import psutil
import pytest
import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import TensorGroup
from peft.utils.merge_utils import dare_linear
from torch import Tensor

from taskvectors.format import file_digest
from taskvectors.sparsify import uniform
from tests.end_to_end.conftest import Gateway
from tests.end_to_end.oracle import Oracle
from tests.end_to_end.synthetic import Maker, Synthetic
from tests.end_to_end.test_truth import PROMPTS, Mix, check, complete, gather

LAYERS = range(8, 12)
SEED = 7
DEADLINE_S = 60.0
KINDS = ("ties", "ties, low-rank", "ties, per layer", "dare_linear", "base", "linear")
COMPOSED = KINDS[:4]


@pytest.fixture(scope="module")
def skills(gateway: Gateway, maker: Maker, tmp_path_factory: pytest.TempPathFactory) -> Mapping:
    """Sparse ones with dense norms on four layers, low-rank ones on two of them; pushed."""
    folder = tmp_path_factory.mktemp("composed")

    def of(layers: range) -> Maker:
        shapes = {n: s for n, s in maker._shapes.items() if _layer(n) in layers}
        return Maker(shapes, maker._base.fingerprint, folder)

    made = [of(LAYERS).full(f"part{i}", seed=300 + i, size=0.2) for i in range(3)]
    made += [of(LAYERS[:2]).low_rank(f"low{i}", seed=310 + i, rank=4, size=0.3) for i in range(2)]
    for vector in made:
        gateway.upload(vector)
    return {vector.name: vector for vector in made}


@pytest.fixture(scope="module")
def mixes(skills: Mapping[str, Synthetic]) -> dict[str, Mix]:
    """What is asked for, and the dense delta of an independent library."""
    weights = {"part0": 1.0, "part1": 0.5, "part2": -0.25}
    low = {"low0": 1.0, "low1": 0.6}
    dare = {"part0": 1.0, "part2": 0.7}
    layers = {"8-9": 1.0, "10-11": 0.25}
    fields = {"method": "ties", "density": 0.005}
    per_layer = [{"name": "part0", "layers": layers}, {"name": "part1", "weight": 0.7}]

    def deep(name: str) -> dict[str, float]:
        return {"part0": 1.0 if _layer(name) < 10 else 0.25, "part1": 0.7}

    merged = {
        "ties": _by_mergekit(skills, lambda _: weights, 0.005),
        "ties, low-rank": _by_mergekit(skills, lambda _: low, 0.5, 0.8),
        "ties, per layer": _by_mergekit(skills, deep, 0.005),
        "dare_linear": _by_peft(skills, dare, 0.5),
        "base": {},
        "linear": {name: 0.8 * delta for name, delta in skills["part1"].deltas.items()},
    }
    dense = {"method": "ties", "density": 0.5, "lambda": 0.8}
    asked = {
        "ties": {"vectors": weights, **fields},
        "ties, low-rank": {"vectors": low, **dense},
        "ties, per layer": {"vectors": per_layer, **fields},
        "dare_linear": {"vectors": dare, "method": "dare_linear", "density": 0.5, "seed": SEED},
        "base": {},
        "linear": {"part1": 0.8},
    }
    return {name: Mix(asked[name], [(merged[name], 1.0, None)]) for name in KINDS}


def _layer(name: str) -> int:
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else -1


def _by_mergekit(
    skills: Mapping[str, Synthetic],
    weights: Callable[[str], Mapping[str, float]],
    density: float,
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """mergekit's TIES on dense tensors. weights: of the vectors, for a parameter's name."""
    merged = {}
    for name in skills[next(iter(weights("a.layers.8")))].deltas:
        deltas = [skills[skill].deltas[name] for skill in weights(name)]
        tensors = [torch.zeros_like(deltas[0]), *deltas]
        merged[name] = registry.get("ties").merge_group(
            TensorGroup.from_tensors(tensors, base_index=0),
            weight=dict(enumerate(weights(name).values(), start=1)),
            density=dict.fromkeys(range(1, len(tensors)), density),
            int8_mask=False,
            normalize=True,
            rescale=False,
            **{"lambda": scale},
        )
    return merged


def _by_peft(
    skills: Mapping[str, Synthetic], weights: Mapping[str, float], density: float
) -> dict[str, Tensor]:
    """PEFT's DARE, which draws what the elements of each file draw here."""
    digests = [file_digest(skills[skill].path) for skill in weights]
    factors = torch.tensor(list(weights.values()))
    merged = {}
    for name in skills[next(iter(weights))].deltas:
        deltas = [skills[skill].deltas[name] for skill in weights]
        keys = iter(digests)

        def bernoulli(chances: Tensor, name: str = name, keys: object = keys) -> Tensor:
            draws = uniform(next(keys), SEED, name, np.arange(chances.numel()))  # type: ignore[call-overload]
            return torch.from_numpy(draws < density).reshape(chances.shape).to(chances.dtype)

        with mock.patch("torch.bernoulli", bernoulli):
            merged[name] = dare_linear(deltas, factors, density)
    return merged


@pytest.fixture(scope="module")
def alone(gateway: Gateway, mixes: dict[str, Mix]) -> dict[str, openai.types.Completion]:
    """One request for each loadout, one after the other: each composed one is composed here."""
    return {
        name: gather(gateway, [(PROMPTS[0], mix.task_vectors)])[0] for name, mix in mixes.items()
    }


@pytest.fixture(scope="module")
def together(
    gateway: Gateway, mixes: dict[str, Mix], alone: object
) -> dict[str, list[openai.types.Completion]]:
    """All loadouts, the base and a linear one in one batch, each with every prompt."""
    asked = [(prompt, mix.task_vectors) for prompt in PROMPTS for mix in mixes.values()]
    answers = iter(gather(gateway, asked))
    rounds = [dict(zip(mixes, answers, strict=False)) for _ in PROMPTS]
    return {name: [answered[name] for answered in rounds] for name in mixes}


@pytest.mark.parametrize("name", KINDS)
def test_a_composed_loadout_equals_the_dense_merge(
    name: str,
    oracle: Oracle,
    mixes: dict[str, Mix],
    alone: dict[str, openai.types.Completion],
    together: dict[str, list[openai.types.Completion]],
) -> None:
    """mergekit's ties, PEFT's DARE: alone, and in one batch with the others."""
    with oracle.merged(mixes[name].weighted):
        errors = [check(oracle, PROMPTS[0], alone[name], "alone")]
        for prompt, answer in zip(PROMPTS, together[name], strict=True):
            errors.append(check(oracle, prompt, answer, repr(prompt)))
    print(f"largest |Δlogprob| {max(errors):.1e}")


def test_every_method_gives_another_answer(
    together: dict[str, list[openai.types.Completion]],
) -> None:
    """Else the comparison would prove nothing."""
    texts = {tuple(answer.choices[0].text for answer in together[name]) for name in KINDS}
    assert len(texts) == len(KINDS)


@pytest.mark.usefixtures("together")
def test_each_loadout_was_composed_once(
    gateway: Gateway, mixes: dict[str, Mix], alone: dict[str, openai.types.Completion]
) -> None:
    """One line of the log for each: method, vectors, size and seconds."""
    for name in COMPOSED:
        described = alone[name].model_extra["task_vectors"]
        assert described["method"] == mixes[name].task_vectors["method"]
        lines = re.findall(f"loadout {described['loadout']} composed: .*", gateway.log.read_text())
        assert len(lines) == 1
        assert re.search(rf"{described['method']} of \d vectors, [\d.]+ MB, [\d.]+ s", lines[0])


def test_a_loadout_too_large_for_the_pool_is_refused(gateway: Gateway) -> None:
    """A low-rank vector of every layer becomes dense; the server lives and says so."""
    asked = {"vectors": {"lowrank": 1.0}, "method": "ties", "density": 1.0}
    with pytest.raises(openai.BadRequestError, match="on the device or more") as caught:
        gather(gateway, [("Hi", asked)], tokens=1)
    assert caught.value.code == "loadout_too_large"
    assert "use a smaller density" in str(caught.value)
    gather(gateway, [("Hi", {})], tokens=1)
    assert gateway.process.poll() is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "tiez"}, "did you mean 'ties'"),
        ({"method": "ties", "densty": 1}, "choose density, lambda, normalize"),
        ({"method": "slerp"}, "outfitter merge"),
    ],
)
def test_what_cannot_be_composed_is_a_bad_request(
    gateway: Gateway, skills: object, fields: dict[str, object], message: str
) -> None:
    """With the choices, or what to do instead."""
    asked = {"vectors": {"part0": 1.0, "part1": 1.0}, **fields}
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        gather(gateway, [("Hi", asked)], tokens=1)
    assert caught.value.code == "invalid_loadout"


def _ties(seed: int) -> dict[str, object]:
    """A loadout that nobody asked for before."""
    weights = {"part0": 1.0, "part1": 0.5 + seed / 100}
    return {"vectors": weights, "method": "ties", "density": 0.004}


async def _composing(gateway: Gateway) -> psutil.Process:
    """The process that composes, stopped by the first look at it."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        for process in psutil.Process(gateway.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "taskvectors.merge.compose" in process.cmdline():
                    process.suspend()
                    return process
        await asyncio.sleep(0.005)
    pytest.fail("nothing is composed")


def test_a_slow_composition_holds_nobody_up(gateway: Gateway, skills: object) -> None:
    """While its process stands still, base and linear requests are answered; then it is, too."""

    async def run() -> None:
        async with gateway.client() as client:

            def ask(mix: object) -> asyncio.Task[openai.types.Completion]:
                return asyncio.create_task(complete(client, gateway.model, PROMPTS[1], mix, 6))

            slow = ask(_ties(1))
            process = await _composing(gateway)
            try:
                await asyncio.gather(ask({}), ask({"part0": 0.5}))
                assert process.status() == psutil.STATUS_STOPPED
                assert not slow.done()
            finally:
                process.resume()
            assert (await slow).choices[0].text

    asyncio.run(run())


def test_a_composing_process_that_is_killed_is_an_error_of_one_request(
    gateway: Gateway, skills: object
) -> None:
    """503, to be tried again, which then succeeds; the engine is the same."""
    engine = {p.pid for p in gateway.engine_processes()}

    async def run() -> None:
        async with gateway.client() as client:
            unlucky = asyncio.create_task(
                complete(client, gateway.model, PROMPTS[1], _ties(2), tokens=1)
            )
            (await _composing(gateway)).kill()
            with pytest.raises(openai.InternalServerError, match="SIGKILL") as caught:
                await unlucky
            assert (caught.value.status_code, caught.value.code) == (503, "engine_unavailable")
            await complete(client, gateway.model, PROMPTS[1], _ties(2), tokens=1)

    asyncio.run(run())
    assert engine <= {p.pid for p in gateway.engine_processes()}


def test_a_client_can_not_name_a_composed_file(gateway: Gateway, alone: object) -> None:
    """Not even with its digest, which only the store's owner sees."""
    [store] = gateway.log.parent.glob("*-store")
    composed = sorted((store / "composed").glob("*.safetensors"))
    assert len(composed) >= len(COMPOSED)
    digest = Path(composed[0]).stem
    with pytest.raises(openai.NotFoundError, match="no task vector"):
        gather(gateway, [("Hi", {f"sha256:{digest}": 1.0})], tokens=1)
