"""Admission loads each vector once, waits for room, and tells every waiter when it fails.

The engine's worker is a stand-in that loads when told to; the real one runs in tests/end_to_end.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from taskvectors.errors import (
    BaseMismatch,
    EngineUnavailable,
    PoolBusy,
    PoolTooSmall,
    VectorLoadFailed,
    VectorNotFound,
)
from taskvectors.format import write_vector
from taskvectors.spec import Loadout, LoadoutItem
from taskvectors.store import DirectoryStore
from taskvectors.store.tiered import TieredFiles
from taskvectors.vector import BaseInfo, DenseDelta, TaskVector
from taskvectors.vllm_plugin.admission import Admission
from taskvectors.vllm_plugin.config import PluginConfig

SIZE = 100
FINGERPRINT = "f" * 64


class FakeWorker:
    """Records orders; `states` decides what becomes of a load."""

    def __init__(self, states: Mapping[str, str] | None = None) -> None:
        self.loads: list[str] = []
        self.evictions: list[str] = []
        self.columns: dict[str, int] = {}
        self.prefetched: list[str] = []
        self.hold = False
        self.broken = False
        self._states = states or {}

    async def apply(self, evict: list[str], load: dict[str, int]) -> None:
        await asyncio.sleep(0)
        for digest in evict:
            self.evictions.append(digest)
            self.columns.pop(digest, None)
        assert not set(load.values()) & set(self.columns.values()), "a column was given twice"
        self.loads += load
        self.columns |= load

    async def prefetch(self, digests: list[str]) -> None:
        self.prefetched += digests

    async def status(self) -> Mapping[str, str]:
        if self.broken:
            raise ConnectionError("gone")
        if self.hold:
            return dict.fromkeys(self.columns, "loading")
        return {digest: self._states.get(digest, "ready") for digest in self.columns}


@pytest.fixture
def digests(tmp_path: Path) -> list[str]:
    """Four vectors of 400 device bytes each in a store."""
    store = DirectoryStore(tmp_path / "store")
    made = []
    for seed in range(4):
        values = np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)
        vector = TaskVector(
            base=BaseInfo("base", FINGERPRINT), parameters={"norm.weight": DenseDelta(values)}
        )
        write_vector(vector, tmp_path / "vector.safetensors")
        made.append(store.add(tmp_path / "vector.safetensors"))
    return made


def _admission(tmp_path: Path, worker: FakeWorker, **settings: object) -> Admission:
    values = {"pool_bytes": 2 * 4 * SIZE, "admission_timeout_s": 5.0, **settings}
    config = PluginConfig(store=tmp_path / "store", **values)  # type: ignore[arg-type]
    files = TieredFiles(config.store, config.tiers, with_memory=False)
    return Admission(config, worker, files, value_bytes=4, sparse_value_bytes=4)


def _mix(*digests: str) -> Loadout:
    return Loadout.build([LoadoutItem(digest, 1.0) for digest in digests])


async def _use(admission: Admission, loadout: Loadout, seconds: float = 0.0) -> None:
    async with admission.admit(loadout):
        await asyncio.sleep(seconds)


def test_a_thousand_requests_for_a_cold_vector_load_it_once(
    tmp_path: Path, digests: list[str]
) -> None:
    async def run() -> None:
        worker = FakeWorker()
        admission = _admission(tmp_path, worker)
        await asyncio.gather(*(_use(admission, _mix(digests[0])) for _ in range(1000)))
        assert worker.loads == [digests[0]]

    asyncio.run(run())


def test_requests_wait_for_room_and_all_are_served(tmp_path: Path, digests: list[str]) -> None:
    async def run() -> None:
        worker = FakeWorker()
        admission = _admission(tmp_path, worker)
        pairs = [(a, b) for a in digests for b in digests if a != b]
        await asyncio.gather(*(_use(admission, _mix(*pair), 0.002) for pair in pairs))
        assert len(worker.columns) <= 2

    asyncio.run(run())


def test_a_request_that_waits_too_long_is_told_to_come_back(
    tmp_path: Path, digests: list[str]
) -> None:
    async def run() -> None:
        admission = _admission(tmp_path, FakeWorker(), admission_timeout_s=0.05)
        async with admission.admit(_mix(digests[0], digests[1])):
            with pytest.raises(PoolBusy, match=r"0\.05 s"):
                await _use(admission, _mix(digests[2]))
        await _use(admission, _mix(digests[2]))

    asyncio.run(run())


def test_the_queue_for_room_is_bounded(tmp_path: Path, digests: list[str]) -> None:
    async def run() -> None:
        admission = _admission(tmp_path, FakeWorker(), max_waiting=1)
        async with admission.admit(_mix(digests[0], digests[1])):
            waiting = asyncio.create_task(_use(admission, _mix(digests[2])))
            await asyncio.sleep(0.02)
            with pytest.raises(PoolBusy, match="1 requests wait"):
                await _use(admission, _mix(digests[3]))
        await waiting

    asyncio.run(run())


def test_a_loadout_larger_than_the_pool_is_refused_at_once(
    tmp_path: Path, digests: list[str]
) -> None:
    async def run() -> None:
        with pytest.raises(PoolTooSmall, match="1200 bytes"):
            await _use(_admission(tmp_path, FakeWorker()), _mix(*digests[:3]))

    asyncio.run(run())


def test_a_failed_load_reaches_every_waiter_and_can_be_tried_again(
    tmp_path: Path, digests: list[str]
) -> None:
    async def run() -> None:
        states = {digests[0]: "failed: disk on fire"}
        worker = FakeWorker(states)
        admission = _admission(tmp_path, worker)
        jobs = [_use(admission, _mix(digests[0])) for _ in range(3)]
        for outcome in await asyncio.gather(*jobs, return_exceptions=True):
            assert isinstance(outcome, VectorLoadFailed)
            assert "disk on fire" in str(outcome)
        states.clear()
        await _use(admission, _mix(digests[0]))
        assert worker.loads == [digests[0]] * 2

    asyncio.run(run())


def test_an_engine_that_does_not_answer_is_an_error_and_no_hang(
    tmp_path: Path, digests: list[str]
) -> None:
    async def run() -> None:
        worker = FakeWorker()
        worker.broken = True
        admission = _admission(tmp_path, worker)
        with pytest.raises(EngineUnavailable, match="does not answer"):
            await _use(admission, _mix(digests[0]))
        worker.broken = False
        await _use(admission, _mix(digests[0]))
        assert worker.loads == [digests[0]] * 2, "what it holds is not known, so it loads again"

    asyncio.run(run())


def test_a_client_that_leaves_while_its_vector_loads_frees_the_room(
    tmp_path: Path, digests: list[str]
) -> None:
    async def run() -> None:
        worker = FakeWorker()
        worker.hold = True
        admission = _admission(tmp_path, worker)
        gone = asyncio.create_task(_use(admission, _mix(digests[0], digests[1])))
        await asyncio.sleep(0.02)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        worker.hold = False
        await _use(admission, _mix(digests[2], digests[3]))
        assert sorted(worker.evictions) == sorted(digests[:2])

    asyncio.run(run())


def test_a_vector_of_another_base_is_refused(tmp_path: Path, digests: list[str]) -> None:
    async def run() -> None:
        admission = _admission(tmp_path, FakeWorker(), base_fingerprint="0" * 64)
        with pytest.raises(BaseMismatch, match=FINGERPRINT):
            await _use(admission, _mix(digests[0]))

    asyncio.run(run())


def test_an_unknown_digest_is_refused(tmp_path: Path, digests: list[str]) -> None:
    async def run() -> None:
        with pytest.raises(VectorNotFound):
            await _use(_admission(tmp_path, FakeWorker()), _mix("e" * 64))

    asyncio.run(run())
