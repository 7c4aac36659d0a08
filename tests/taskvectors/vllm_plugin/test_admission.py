"""Admission loads each vector once, waits for room, and tells every waiter when it fails.

The engine's worker is a stand-in that loads when told to; the real one runs in tests/end_to_end.
"""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from taskvectors.errors import (
    BaseMismatch,
    EngineUnavailable,
    PoolBusy,
    PoolTooSmall,
    TierUnavailable,
    VectorLoadFailed,
    VectorNotFound,
)
from taskvectors.footprint import resident_bytes
from taskvectors.format import FileHeader, read_header, write_vector
from taskvectors.spec import Loadout, LoadoutItem
from taskvectors.store import DirectoryStore
from taskvectors.store.tier import Tier, TierStats
from taskvectors.store.tiered import TieredFiles
from taskvectors.vector import BaseInfo, DenseDelta, TaskVector
from taskvectors.vllm_plugin.admission import Admission
from taskvectors.vllm_plugin.config import PluginConfig
from taskvectors.vllm_plugin.pool import ResidentPool

SIZE = 100
FINGERPRINT = "f" * 64


class FakeWorker:
    """Records orders; `states` decides what becomes of a load."""

    def __init__(self, states: Mapping[str, str] | None = None) -> None:
        self.loads: list[str] = []
        self.evictions: list[str] = []
        self.columns: dict[str, int] = {}
        self.reserved: dict[str, int] = {}
        self.prefetches: list[str] = []
        self.hold = False
        self.broken = False
        self._states = states or {}

    async def apply(self, evict: list[str], load: dict[str, tuple[int, int]]) -> None:
        await asyncio.sleep(0)
        for digest in evict:
            self.evictions.append(digest)
            self.columns.pop(digest, None)
        columns = {digest: column for digest, (column, _) in load.items()}
        assert not set(columns.values()) & set(self.columns.values()), "a column was given twice"
        self.loads += load
        self.columns |= columns
        self.reserved |= {digest: nbytes for digest, (_, nbytes) in load.items()}

    async def prefetch(self, digests: list[str]) -> None:
        self.prefetches += digests

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
    return admission_of(config, worker)


def admission_of(config: PluginConfig, worker: FakeWorker) -> Admission:
    files = TieredFiles(config.store, config.tiers, with_memory=False)
    return Admission(config, worker, files, value_bytes=4, sparse_value_bytes=4)


def _mix(*digests: str) -> Loadout:
    return Loadout.build([LoadoutItem(digest, 1.0) for digest in digests])


async def _use(admission: Admission, loadout: Loadout, seconds: float = 0.0) -> None:
    async with admission.admit(loadout):
        await asyncio.sleep(seconds)


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while True:
            if is_so():
                return
            await asyncio.sleep(0.001)


def _num_users(admission: Admission, digest: str) -> int:
    entry = admission._ledger.entry(digest)
    return 0 if entry is None else entry.users


def test_a_thousand_requests_for_a_cold_vector_load_it_once(
    tmp_path: Path, digests: list[str]
) -> None:
    async def run() -> None:
        worker = FakeWorker()
        admission = _admission(tmp_path, worker)
        await asyncio.gather(*(_use(admission, _mix(digests[0])) for _ in range(1000)))
        assert worker.loads == [digests[0]]
        assert worker.reserved == {digests[0]: 4 * SIZE}
        assert worker.prefetches == []
        assert admission.stats() == {
            "vectors": 1,
            "nbytes": 4 * SIZE,
            "budget": 8 * SIZE,
            "loads": 1,
            "evictions": 0,
            "waiting": 0,
        }

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
        worker.hold = True
        admission = _admission(tmp_path, worker)
        jobs = [asyncio.create_task(_use(admission, _mix(digests[0]))) for _ in range(3)]
        await _until(lambda: _num_users(admission, digests[0]) == 3)
        worker.hold = False
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
        await _until(lambda: len(worker.loads) == 2)
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


def test_vectors_come_into_memory_while_a_request_waits_for_room(
    tmp_path: Path, digests: list[str]
) -> None:
    """Only what the pool lacks, and it is not ordered into the pool before there is room."""

    async def run() -> None:
        worker = FakeWorker()
        admission = _admission(tmp_path, worker)
        async with admission.admit(_mix(digests[0], digests[1])):
            waiting = asyncio.create_task(_use(admission, _mix(digests[1], digests[2])))
            while not worker.prefetches:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            assert worker.prefetches == [digests[2]]
            assert digests[2] not in worker.loads
            assert admission.stats()["waiting"] == 1
        await waiting
        assert worker.loads[-1] == digests[2]

    asyncio.run(run())


def test_a_worker_that_does_not_prefetch_fails_no_request(
    tmp_path: Path, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        worker, asked = FakeWorker(), asyncio.Event()

        async def prefetch(_digests: list[str]) -> None:
            asked.set()
            raise ConnectionError("gone")

        monkeypatch.setattr(worker, "prefetch", prefetch)
        admission = _admission(tmp_path, worker)
        async with admission.admit(_mix(digests[0], digests[1])):
            waiting = asyncio.create_task(_use(admission, _mix(digests[2])))
            await asked.wait()
        await waiting

    asyncio.run(run())


class LyingFiles:
    """Headers of `said` until they are forgotten; then those of `true`."""

    def __init__(self, true: TieredFiles, said: dict[str, FileHeader]) -> None:
        self._true = true
        self._said = said
        self.forgotten: list[str] = []

    def header(self, digest: str) -> FileHeader:
        return self._said.get(digest) or self._true.header(digest)

    def forget_header(self, digest: str) -> None:
        self.forgotten.append(digest)
        self._said.pop(digest, None)


def _lying(tmp_path: Path, worker: FakeWorker, digest: str, size: int) -> Admission:
    """Admission that is told of another vector with `size` values in the place of `digest`."""
    config = PluginConfig(store=tmp_path / "store", pool_bytes=8 * SIZE)
    delta = DenseDelta(np.ones(size, dtype=np.float32))
    base = BaseInfo("base", FINGERPRINT)
    write_vector(TaskVector(base, {"norm.weight": delta}), tmp_path / "other.safetensors")
    said = {digest: read_header(tmp_path / "other.safetensors")}
    files = LyingFiles(TieredFiles(config.store, config.tiers, with_memory=False), said)
    return Admission(config, worker, files, value_bytes=4, sparse_value_bytes=4)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 2 * SIZE])
def test_a_header_that_lied_is_read_anew_after_the_worker_has_found_out(
    tmp_path: Path, digests: list[str], size: int
) -> None:
    """A try later is served, with the right room."""

    async def run() -> None:
        states = {digests[0]: f"away: it takes {4 * SIZE} bytes"}
        worker = FakeWorker(states)
        admission = _lying(tmp_path, worker, digests[0], size)
        with pytest.raises(TierUnavailable, match="it takes 400 bytes"):
            await _use(admission, _mix(digests[0]))
        assert worker.reserved == {digests[0]: 4 * size}
        assert admission.stats()["nbytes"] == 0, "what was not loaded takes no room"
        states.clear()
        await _use(admission, _mix(digests[0]))
        assert worker.reserved == {digests[0]: 4 * SIZE}

    asyncio.run(run())


def test_a_refusal_for_what_an_unchecked_header_says_is_not_remembered(
    tmp_path: Path, digests: list[str]
) -> None:
    async def run() -> None:
        admission = _lying(tmp_path, FakeWorker(), digests[0], 3 * SIZE)
        with pytest.raises(PoolTooSmall, match="1200 bytes"):
            await _use(admission, _mix(digests[0]))
        await _use(admission, _mix(digests[0]))

    asyncio.run(run())


class LyingRedis:
    """A tier whose head is of another file than its bytes are."""

    name = "redis"

    def __init__(self, head: bytes, data: bytes) -> None:
        self._head, self._data = head, data

    def size(self, _digest: str) -> int:
        return len(self._data)

    def head(self, _digest: str, nbytes: int) -> bytes:
        return self._head[:nbytes]

    def fill(self, _digest: str, buffer: memoryview, progress: Callable[[int], None]) -> None:
        buffer[:] = self._data
        progress(len(self._data))

    def put(self, _digest: str, _data: memoryview) -> bool:
        return True

    def drop(self, _digest: str) -> None: ...

    def stats(self) -> TierStats:
        return TierStats()


class PoolWorker:
    """The real pool over its own tiers; what it stages is counted."""

    def __init__(self, pool: ResidentPool) -> None:
        self._pool = pool

    async def apply(self, evict: list[str], load: dict[str, tuple[int, int]]) -> None:
        self._pool.apply(evict, load)

    async def status(self) -> Mapping[str, str]:
        return self._pool.status()

    async def prefetch(self, _digests: list[str]) -> None: ...


class CountingStager:
    """Stages nothing, and counts."""

    num_staged = 0

    def nbytes(self, header: FileHeader) -> int:
        return resident_bytes(header, 4, 4)

    def stage(self, _vector: TaskVector, _column: int) -> list[object]:
        self.num_staged += 1
        return []


def test_a_lying_head_in_a_shared_tier_gets_no_room_for_more_than_it_says(
    tmp_path: Path, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head of two values before a file of a hundred: the pool never holds more than it counts.

    The worker's load brings the checked file to the disk, whose header is believed next.
    """
    data = DirectoryStore(tmp_path / "store").path(digests[0]).read_bytes()
    head = _padded_head(tmp_path, len(data))

    def chain(_settings: object, disk: Tier) -> list[Tier]:
        return [LyingRedis(head, data), disk]  # type: ignore[list-item]

    monkeypatch.setattr("taskvectors.store.tiered._chain", chain)

    async def run() -> None:
        config = PluginConfig(store=tmp_path / "empty", pool_bytes=8 * SIZE)
        seen, stager = TieredFiles(config.store, config.tiers, with_memory=False), CountingStager()
        held = TieredFiles(config.store, config.tiers, with_memory=True)
        worker = PoolWorker(ResidentPool(held, stager))  # type: ignore[arg-type]
        admission = Admission(config, worker, seen, value_bytes=4, sparse_value_bytes=4)
        with pytest.raises(TierUnavailable, match=r"takes 400 bytes on the device.*claimed 8"):
            await _use(admission, _mix(digests[0]))
        assert stager.num_staged == 0
        assert held.settle()
        await _use(admission, _mix(digests[0]))
        assert admission.stats()["nbytes"] == 4 * SIZE
        assert stager.num_staged == 1

    asyncio.run(run())


def _padded_head(tmp_path: Path, nbytes: int) -> bytes:
    """The start of a file of two values whose size is `nbytes`, by a long license."""
    path, base = tmp_path / "small.safetensors", BaseInfo("base", FINGERPRINT)
    parameters = {"norm.weight": DenseDelta(np.ones(2, dtype=np.float32))}
    write_vector(TaskVector(base, parameters, {"license": "x"}), path)
    more = nbytes - path.stat().st_size
    write_vector(TaskVector(base, parameters, {"license": "x" * (1 + more)}), path)
    assert path.stat().st_size == nbytes
    return path.read_bytes()
