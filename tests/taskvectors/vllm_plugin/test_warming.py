"""Warming makes vectors resident where there is room, brings the rest into memory, and pins."""

import asyncio
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskvectors.errors import PoolBusy
from taskvectors.format import write_vector
from taskvectors.spec import Loadout, LoadoutItem
from taskvectors.store import DirectoryStore
from taskvectors.vector import BaseInfo, DenseDelta, TaskVector
from taskvectors.vllm_plugin.admission import Admission
from taskvectors.vllm_plugin.config import PluginConfig
from taskvectors.vllm_plugin.warming import MAX_AT_ONCE, Warmer
from tests.taskvectors.vllm_plugin.test_admission import FakeWorker, admission_of

SIZE = 100
NBYTES = 4 * SIZE
UNKNOWN = "e" * 64


class Worker(FakeWorker):
    """Has a memory, too: `memory` says what becomes of a prefetch."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: Mapping[str, str] = {}
        self.asked = 0
        self.states: dict[str, str] = {}
        self._states = self.states

    async def prefetched(self, digests: list[str]) -> Mapping[str, str]:
        self.asked += 1
        if self.broken:
            raise ConnectionError("gone")
        found = {digest: self.memory.get(digest, "memory") for digest in digests}
        return {digest: state for digest, state in found.items() if state != "forgotten"}


@pytest.fixture
def digests(tmp_path: Path) -> list[str]:
    """Six vectors of 400 device bytes each, the last of 800."""
    store, made = DirectoryStore(tmp_path / "store"), []
    for seed in range(6):
        values = np.full(SIZE * (1 + seed // 5), 1 + seed, dtype=np.float32)
        vector = TaskVector(BaseInfo("base", None), {"norm.weight": DenseDelta(values)})
        write_vector(vector, tmp_path / "vector.safetensors")
        made.append(store.add(tmp_path / "vector.safetensors"))
    return made


class Engine:
    """Admission and warming over one worker; the pool has room for four vectors."""

    def __init__(self, tmp_path: Path, **settings: Any) -> None:
        values: dict[str, Any] = {"pool_bytes": 4 * NBYTES, "admission_timeout_s": 5.0, **settings}
        self.worker = Worker()
        self.admission: Admission = admission_of(
            PluginConfig(store=tmp_path / "store", **values), self.worker
        )
        self.warmer = Warmer(self.admission, self.worker, values["admission_timeout_s"])

    async def use(self, *digests: str) -> None:
        async with self.admission.admit(mix(*digests)):
            pass


def mix(*digests: str) -> Loadout:
    return Loadout.build([LoadoutItem(digest, 1.0) for digest in digests])


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test

    asyncio.run(bounded())


def test_what_has_room_becomes_resident_and_the_rest_comes_into_memory(
    tmp_path: Path, digests: list[str]
) -> None:
    """Nothing is evicted for a prefetch, though nobody uses what is there."""
    engine = Engine(tmp_path)

    async def test() -> None:
        await engine.use(*digests[:3])
        states = await engine.warmer.warm([*digests[3:5], digests[0]], pin=False)
        assert sorted(states.values()) == ["memory", "ready", "ready"]
        assert states[digests[0]] == "ready"
        assert engine.worker.evictions == []
        assert len(engine.worker.prefetches) == 1

    run(test())


def test_a_prefetched_vector_makes_room_when_it_is_needed(
    tmp_path: Path, digests: list[str]
) -> None:
    engine = Engine(tmp_path, pool_bytes=NBYTES)

    async def test() -> None:
        assert await engine.warmer.warm(digests[:1], pin=False) == {digests[0]: "ready"}
        await engine.use(digests[1])
        assert engine.worker.evictions == digests[:1]

    run(test())


def test_a_digest_named_twice_is_warmed_once(tmp_path: Path, digests: list[str]) -> None:
    engine = Engine(tmp_path)

    async def test() -> None:
        jobs = (engine.warmer.warm([digests[0]] * 3, pin=pin) for pin in (False, True) * 10)
        assert await asyncio.gather(*jobs) == [{digests[0]: "ready"}] * 20
        assert engine.worker.loads == digests[:1]

    run(test())


@pytest.mark.parametrize("pin", [False, True])
def test_an_unknown_digest_fails_alone(tmp_path: Path, digests: list[str], pin: bool) -> None:
    engine = Engine(tmp_path)

    async def test() -> None:
        states = await engine.warmer.warm([UNKNOWN, "no digest", digests[0]], pin=pin)
        assert states[digests[0]] == "ready"
        assert states[UNKNOWN] == f"failed: no task vector sha256:{UNKNOWN}"
        assert states["no digest"].startswith("failed: 'no digest' is no digest")

    run(test())


@pytest.mark.parametrize("pin", [False, True])
def test_a_vector_larger_than_the_pool_says_so(
    tmp_path: Path, digests: list[str], pin: bool
) -> None:
    engine = Engine(tmp_path, pool_bytes=2 * NBYTES - 1)

    async def test() -> None:
        states = await engine.warmer.warm([digests[5]], pin=pin)
        assert states[digests[5]].startswith("failed: ")
        assert "800 bytes" in states[digests[5]]
        assert engine.worker.loads == []

    run(test())


@pytest.mark.parametrize("error", [RuntimeError("/secret"), OSError("/secret")])
def test_nothing_that_goes_wrong_is_raised_or_tells_paths(
    tmp_path: Path, digests: list[str], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(tmp_path)

    async def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(engine.admission, "_needs", broken)

    async def test() -> None:
        for pin in (False, True):
            states = await engine.warmer.warm([digests[0]], pin=pin)
            name = type(error).__name__
            assert states == {digests[0]: f"failed: {name}; the engine's log says more"}

    run(test())


@pytest.mark.parametrize("pin", [False, True])
@pytest.mark.parametrize("state", ["failed: on fire", "missing: on fire", "away: on fire"])
def test_a_load_that_fails_is_told_and_leaves_no_pin(
    tmp_path: Path, digests: list[str], state: str, pin: bool
) -> None:
    engine = Engine(tmp_path)
    engine.worker.states[digests[0]] = state

    async def test() -> None:
        states = await engine.warmer.warm([digests[0]], pin=pin)
        assert states[digests[0]].startswith("failed: ")
        assert states[digests[0]].endswith("on fire")
        assert engine.admission.stats()["nbytes"] == 0
        engine.worker.states.clear()
        assert await engine.warmer.warm([digests[0]], pin=pin) == {digests[0]: "ready"}

    run(test())


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("memory", "memory"),
        ("failed: on fire", "on fire"),
        ("missing: no such file", "no such file"),
        ("away: redis is away", "redis is away"),
        ("forgotten", "forgotten it; try again"),
        ("loading", "not loaded in 0.2 s"),
    ],
)
def test_what_does_not_come_into_memory_is_a_failure(
    tmp_path: Path, digests: list[str], state: str, told: str
) -> None:
    """Whatever the worker's word for it is."""
    timeout_s = 0.2 if state == "loading" else 5.0
    engine = Engine(tmp_path, pool_bytes=NBYTES, admission_timeout_s=timeout_s)
    engine.worker.memory = {digests[1]: state}

    async def test() -> None:
        await engine.use(digests[0])
        found = (await engine.warmer.warm([digests[1]], pin=False))[digests[1]]
        assert found.endswith(told)
        assert found == "memory" or found.startswith("failed: ")

    run(test())


def test_an_engine_that_does_not_answer_is_a_failure(tmp_path: Path, digests: list[str]) -> None:
    engine = Engine(tmp_path, pool_bytes=NBYTES)

    async def test() -> None:
        await engine.use(digests[0])
        engine.worker.broken = True
        states = await engine.warmer.warm([digests[1]], pin=False)
        assert states == {digests[1]: "failed: the engine does not answer; try again"}

    run(test())


def test_only_so_many_are_under_way_at_once(
    tmp_path: Path, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(tmp_path)
    now = most = 0

    async def hold(_digest: str, *, may_evict: bool) -> None:
        nonlocal now, most
        assert not may_evict
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1

    monkeypatch.setattr(engine.admission, "hold", hold)
    run_of = engine.warmer.warm([f"{number:064x}" for number in range(100)], pin=False)

    async def test() -> None:
        assert set((await run_of).values()) == {"memory"}
        assert most == MAX_AT_ONCE

    run(test())


def test_a_pinned_vector_survives_any_pressure(tmp_path: Path, digests: list[str]) -> None:
    """Two are pinned; the others come and go beside them."""
    engine = Engine(tmp_path, admission_timeout_s=5.0)

    async def test() -> None:
        assert set((await engine.warmer.warm(digests[:2], pin=True)).values()) == {"ready"}
        for _ in range(3):
            await asyncio.gather(*(engine.use(digest) for digest in digests[2:]))
        assert len(engine.worker.evictions) > 4
        assert not set(engine.worker.evictions) & set(digests[:2])
        assert engine.worker.loads[:2] == sorted(digests[:2])

    run(test())


def test_a_pin_evicts_what_nobody_uses(tmp_path: Path, digests: list[str]) -> None:
    engine = Engine(tmp_path)

    async def test() -> None:
        await engine.use(*digests[:4])
        assert await engine.warmer.warm([digests[4]], pin=True) == {digests[4]: "ready"}
        assert len(engine.worker.evictions) == 1

    run(test())


def test_a_pin_beside_vectors_in_use_says_so_and_takes_nothing(
    tmp_path: Path, digests: list[str]
) -> None:
    engine = Engine(tmp_path)

    async def test() -> None:
        async with engine.admission.admit(mix(*digests[:4])):
            state = (await engine.warmer.warm([digests[4]], pin=True))[digests[4]]
        assert state.startswith("failed: it does not fit the pool beside the vectors in use")
        assert engine.worker.evictions == []
        assert engine.worker.loads == sorted(digests[:4])
        await engine.use(digests[4])

    run(test())


def test_pins_take_at_most_half_of_the_pool(tmp_path: Path, digests: list[str]) -> None:
    """At the same time or one after another; what is refused has evicted and loaded nothing."""
    engine = Engine(tmp_path)

    async def test() -> None:
        await engine.use(*digests[:4])
        states = await asyncio.gather(
            *(engine.warmer.warm([digest], pin=True) for digest in digests[:4])
        )
        told = [state for each in states for state in each.values()]
        assert told.count("ready") == 2
        refused = [state for state in told if state != "ready"]
        assert (
            refused
            == [
                "failed: its 400 bytes and the 800 of other pins are more than 800, half of the"
                " pool; pin fewer, or use a larger --pool-bytes"
            ]
            * 2
        )
        assert engine.worker.evictions == []
        assert engine.worker.loads == sorted(digests[:4])
        await engine.use(digests[5])  # takes the other half

    run(test())


def test_pins_take_at_most_half_of_the_columns(tmp_path: Path, digests: list[str]) -> None:
    engine = Engine(tmp_path, max_vectors=3)

    async def test() -> None:
        states = await engine.warmer.warm(digests[:2], pin=True)
        assert sorted(states.values())[0].startswith("failed: at most 1 vectors are pinned")
        assert sorted(states.values())[1] == "ready"
        await engine.use(*digests[2:4])

    run(test())


def test_a_pin_again_costs_nothing(tmp_path: Path, digests: list[str]) -> None:
    engine = Engine(tmp_path, pool_bytes=2 * NBYTES)

    async def test() -> None:
        for _ in range(3):
            assert await engine.warmer.warm([digests[0]], pin=True) == {digests[0]: "ready"}
        assert engine.worker.loads == digests[:1]

    run(test())


def test_prefetching_takes_room_that_those_who_wait_cannot_use_yet(
    tmp_path: Path, digests: list[str]
) -> None:
    engine = Engine(tmp_path, pool_bytes=2 * NBYTES, admission_timeout_s=0.5)

    async def test() -> None:
        async with engine.admission.admit(mix(digests[0])):
            waiting = asyncio.create_task(engine.use(digests[5]))
            while not engine.worker.prefetches:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            states = await engine.warmer.warm([digests[1]], pin=False)
            assert states == {digests[1]: "ready"}
            with pytest.raises(PoolBusy):
                await waiting

    run(test())
