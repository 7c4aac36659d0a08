"""The chain gives the right bytes from whoever has them, once, or an error; never wrong ones."""

import errno
import hashlib
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskvectors.errors import StoreFull, TierUnavailable, VectorNotFound
from taskvectors.format import read_header, write_vector
from taskvectors.store import tiered
from taskvectors.store.composed import ComposedStore
from taskvectors.store.disk import DiskTier
from taskvectors.store.settings import DISK, MEMORY, ORIGIN, REDIS, TierSettings
from taskvectors.store.tier import Tier
from taskvectors.store.tiered import TieredFiles
from taskvectors.vector import BaseInfo, DenseDelta, TaskVector
from tests.services import Valkey, valkey
from tests.taskvectors.store.broken import FAULTS, BrokenTier

DATA = np.random.default_rng(5).bytes(3 << 20)  # above RunningDigest's SMALL
DIGEST = hashlib.sha256(DATA).hexdigest()
SMALL = b"some bytes"
ORDER = (MEMORY, REDIS, DISK, ORIGIN)


@pytest.fixture
def redis() -> BrokenTier:
    return BrokenTier(REDIS)


@pytest.fixture
def origin() -> BrokenTier:
    return BrokenTier(ORIGIN)


Open = Callable[..., TieredFiles]


@pytest.fixture
def open_files(
    tmp_path: Path, redis: BrokenTier, origin: BrokenTier, monkeypatch: pytest.MonkeyPatch
) -> Open:
    """The chain over a real disk with stand-ins for what is far away."""

    def opened(order: Sequence[str] = ORDER, *, with_memory: bool = True) -> TieredFiles:
        monkeypatch.setattr(tiered, "_chain", chain_of(order, redis, origin))
        return TieredFiles(tmp_path, TierSettings(tuple(order)), with_memory=with_memory)

    return opened


def chain_of(order: Sequence[str], *others: BrokenTier) -> Callable[..., list[Tier]]:
    def chain(_settings: TierSettings, disk: DiskTier) -> list[Tier]:
        tiers = {DISK: disk} | {tier.name: tier for tier in others}
        return [tiers[name] for name in dict.fromkeys((*order, DISK)) if name in tiers]

    return chain


def place(files: TieredFiles, data: bytes = DATA) -> Path:
    upload = files.store.new_upload()
    upload.write_bytes(data)
    return files.store.place(upload, hashlib.sha256(data).hexdigest())


def damage(path: Path, fault: str) -> None:
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if fault == "wrong" else data[:-1])


def test_a_file_comes_from_memory_the_second_time(open_files: Open, redis: BrokenTier) -> None:
    files = open_files()
    redis.files[DIGEST] = DATA
    first, second = files.load(DIGEST), files.load(f"sha256:{DIGEST}")
    assert first == DATA
    assert first.readonly
    assert first.obj is second.obj
    assert redis.fills == [DIGEST]
    stats = files.stats()
    assert (stats[MEMORY].hits, stats[MEMORY].misses) == (1, 1)
    assert (stats[REDIS].hits, stats[REDIS].read_bytes) == (1, len(DATA))
    assert files.num_loads == 1


@pytest.mark.parametrize("with_memory", [True, False])
def test_a_thousand_threads_load_it_once(
    open_files: Open, redis: BrokenTier, with_memory: bool
) -> None:
    """All get the same bytes, without a copy."""
    files = open_files(with_memory=with_memory)
    redis.files[DIGEST] = DATA
    redis.gate.clear()
    waiting = threading.Semaphore(0)

    def load() -> memoryview:
        waiting.release()
        return files.load(DIGEST)

    with ThreadPoolExecutor(1000) as threads:
        loads = [threads.submit(load) for _ in range(1000)]
        for _ in loads:
            waiting.acquire()
        redis.gate.set()
        found = [each.result(30) for each in loads]
    if with_memory:
        assert redis.fills == [DIGEST]
        assert len({id(data.obj) for data in found}) == 1
    assert all(len(data) == len(DATA) for data in found)
    assert found[0] == DATA


def test_an_error_reaches_all_who_wait_and_is_not_remembered(
    open_files: Open, redis: BrokenTier
) -> None:
    files = open_files((REDIS,))
    redis.files[DIGEST] = DATA
    redis.fault = "away midway"
    redis.gate.clear()
    with ThreadPoolExecutor(20) as threads:
        loads = [threads.submit(files.load, DIGEST) for _ in range(20)]
        redis.gate.set()
        for load in loads:
            with pytest.raises(TierUnavailable, match="the connection broke"):
                load.result(30)
    redis.fault = None
    assert files.load(DIGEST) == DATA


def test_the_disk_and_redis_are_filled_behind_a_load_from_the_origin(
    open_files: Open, redis: BrokenTier, origin: BrokenTier
) -> None:
    files = open_files()
    origin.files[DIGEST] = DATA
    assert files.load(DIGEST) == DATA
    assert files.settle()
    assert redis.files == {DIGEST: DATA}
    assert files.store.path(DIGEST).read_bytes() == DATA


def test_a_disk_in_front_does_not_fill_what_is_behind_it(
    open_files: Open, redis: BrokenTier
) -> None:
    """The order is the operator's."""
    files = open_files((MEMORY, DISK, REDIS))
    place(files)
    assert files.load(DIGEST) == DATA
    assert files.settle()
    assert redis.puts == []


def test_nobody_waits_for_a_tier_to_be_filled(
    open_files: Open, redis: BrokenTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow one gets what its queue holds; the rest is left for another load."""
    monkeypatch.setattr("taskvectors.store.spreading.MAX_FILES", 2)
    files, gate, begun = open_files(), threading.Event(), threading.Event()

    def put(digest: str, _data: memoryview) -> bool:
        begun.set()
        assert gate.wait(30)
        redis.puts.append(digest)
        return True

    monkeypatch.setattr(redis, "put", put)
    for number in range(5):
        path = place(files, b"%d" % number)
        assert files.load(path.stem) == b"%d" % number
        assert begun.wait(30)
    gate.set()
    assert files.settle()
    assert len(redis.puts) == 2


@pytest.mark.parametrize("fault", ["wrong", "truncated"])
def test_a_damaged_file_on_disk_is_kept_for_a_look_and_healed(
    open_files: Open, tmp_path: Path, origin: BrokenTier, fault: str
) -> None:
    files = open_files((MEMORY, DISK, ORIGIN))
    path = place(files)
    origin.files[DIGEST] = DATA
    damage(path, fault)
    assert files.load(DIGEST) == DATA
    assert files.stats()[DISK].corrupt == 1
    assert len(list((tmp_path / "quarantine").glob("*.bin"))) == 1
    assert files.settle()
    assert path.read_bytes() == DATA


@pytest.mark.parametrize("fault", ["wrong", "truncated"])
def test_a_damaged_file_that_nobody_else_has_is_not_found(open_files: Open, fault: str) -> None:
    files = open_files()
    damage(place(files), fault)
    with pytest.raises(VectorNotFound):
        files.load(DIGEST)


def test_a_file_that_is_cut_off_while_it_is_read_comes_from_another_tier(
    open_files: Open, origin: BrokenTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskvectors.store.disk._CHUNK", 1 << 16)
    files = open_files((DISK, ORIGIN))
    origin.files[DIGEST] = DATA
    path = place(files)
    path.chmod(0o644)
    disk = next(tier for tier in files.tiers if tier.name == DISK)
    fill, seen = disk.fill, []

    def cut(digest: str, buffer: memoryview, progress: Callable[[int], None]) -> None:
        def told(nbytes: int) -> None:
            seen.append(nbytes)
            if len(seen) == 3:
                path.write_bytes(DATA[: 1 << 18])
            progress(nbytes)

        fill(digest, buffer, told)

    monkeypatch.setattr(disk, "fill", cut)
    assert files.load(DIGEST) == DATA
    assert max(seen) == 1 << 18
    assert origin.fills == [DIGEST]


def test_what_redis_has_wrong_is_dropped_there(
    open_files: Open, redis: BrokenTier, origin: BrokenTier
) -> None:
    files = open_files()
    redis.files[DIGEST], redis.fault = DATA, "wrong"
    origin.files[DIGEST] = DATA
    assert files.load(DIGEST) == DATA
    assert files.stats()[REDIS].corrupt == 1
    assert files.settle()
    assert redis.puts == [DIGEST]


def test_a_tier_that_is_away_is_a_reason_to_try_again(open_files: Open, redis: BrokenTier) -> None:
    """503, not 404: it may have the file."""
    files = open_files()
    redis.fault = "away"
    with pytest.raises(TierUnavailable, match="redis does not answer"):
        files.load(DIGEST)
    with pytest.raises(TierUnavailable, match="redis does not answer"):
        files.header(DIGEST)
    assert files.stats()[REDIS].errors == 1


@pytest.mark.parametrize("text", ["", "a", "../" + "a" * 61, "A" * 64])
def test_what_is_no_digest_is_not_found(open_files: Open, text: str) -> None:
    for ask in (open_files().load, open_files().header, open_files().path):
        with pytest.raises(VectorNotFound, match="no digest"):
            ask(text)


def test_a_full_disk_fails_no_load(
    open_files: Open, origin: BrokenTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only whoever needs the file on disk is told."""
    files = open_files()
    origin.files[DIGEST] = DATA

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.store, "_check_upload", full)
    assert files.load(DIGEST) == DATA
    assert files.settle()
    with pytest.raises(StoreFull, match="no room"):
        files.path(DIGEST)
    assert list((files.store.root / "incoming").iterdir()) == []


def test_a_path_makes_the_file_local(open_files: Open, redis: BrokenTier) -> None:
    files = open_files((REDIS,), with_memory=False)
    redis.files[DIGEST] = DATA
    with ThreadPoolExecutor(20) as threads:
        paths = set(threads.map(files.path, [DIGEST] * 20))
    assert [path.read_bytes() for path in paths] == [DATA]
    assert not files.heal(DIGEST)
    damage(files.path(DIGEST), "wrong")
    assert files.heal(DIGEST)
    assert files.path(DIGEST).read_bytes() == DATA


def test_composed_loadouts_stay_on_the_local_disk(open_files: Open, redis: BrokenTier) -> None:
    files = open_files()
    composed = ComposedStore(files.store.root)
    written = composed.new_file()
    written.write_bytes(DATA)
    composed.put(written, DIGEST, "k")
    redis.fault = "away"
    assert files.load(DIGEST) == DATA
    assert files.settle()
    assert redis.puts == redis.fills == []
    with pytest.raises(VectorNotFound):
        files.store.path(DIGEST)


def test_a_publish_reaches_the_origin_or_fails(
    open_files: Open, redis: BrokenTier, origin: BrokenTier
) -> None:
    """Redis may be as it likes."""
    files = open_files()
    place(files)
    redis.fault = "away"
    files.spread(DIGEST)
    assert origin.files == {DIGEST: DATA}
    origin.fault = "full"
    with pytest.raises(StoreFull):
        files.spread(DIGEST)
    origin.fault = "away"
    with pytest.raises(TierUnavailable):
        files.spread(DIGEST)


def test_a_dropped_file_is_gone_everywhere(
    open_files: Open, redis: BrokenTier, origin: BrokenTier
) -> None:
    files = open_files()
    place(files)
    files.spread(DIGEST)
    files.load(DIGEST)
    origin.fault = "away"
    with pytest.raises(TierUnavailable):
        files.drop(DIGEST)
    assert files.store.path(DIGEST).is_file(), "it can be dropped another time"
    origin.fault = None
    files.drop(DIGEST)
    assert redis.files == origin.files == {}
    with pytest.raises(VectorNotFound):
        files.load(DIGEST)


@pytest.fixture
def vector(tmp_path: Path) -> Path:
    """A valid file whose header is longer than one look at it."""
    values = {f"layer.{i}.weight": DenseDelta(np.ones(2, np.float32)) for i in range(600)}
    path = tmp_path / "vector.safetensors"
    write_vector(TaskVector(base=BaseInfo("b", None), parameters=values), path)
    return path


def test_a_header_comes_from_the_first_bytes(
    open_files: Open, redis: BrokenTier, vector: Path
) -> None:
    """No tensor is read for it, and it is read once."""
    files, data = open_files(), vector.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    redis.files[digest] = data
    header = files.header(digest)
    assert header.nbytes == len(data)
    assert header.head_nbytes > 64 << 10
    assert header.parameters.keys() == read_header(vector).parameters.keys()
    redis.fault = "away"
    assert files.header(digest) is header
    assert redis.fills == []


def test_a_wrong_header_comes_from_another_tier(
    open_files: Open, redis: BrokenTier, origin: BrokenTier, vector: Path
) -> None:
    """On disk, then in Redis."""
    files, data = open_files(), vector.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    path = place(files, data)
    path.chmod(0o644)
    path.write_bytes(b"!" + data[1:])
    redis.files[digest], redis.fault = data, "wrong"
    origin.files[digest] = data
    assert files.header(digest).nbytes == len(data)
    assert not path.exists()
    assert redis.files == {}


STATES = st.sampled_from((None, "absent", *FAULTS))


@given(
    states=st.fixed_dictionaries(dict.fromkeys((REDIS, ORIGIN), STATES)),
    disk=st.sampled_from((None, "absent", "wrong", "truncated")),
    order=st.permutations(ORDER),
    data=st.sampled_from((SMALL, DATA)),
    with_memory=st.booleans(),
)
def test_whatever_is_broken_a_load_is_right_or_an_error(
    states: dict[str, str | None],
    disk: str | None,
    order: list[str],
    data: bytes,
    with_memory: bool,
) -> None:
    """And right where one tier that answers has the bytes; then the disk can have them, too."""
    digest = hashlib.sha256(data).hexdigest()
    others = [
        BrokenTier(name, None if fault == "absent" else fault) for name, fault in states.items()
    ]
    for tier in others:
        if states[tier.name] != "absent":
            tier.files[digest] = data
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiered, "_chain", chain_of(order, *others))
        files = TieredFiles(Path(root), TierSettings(tuple(order)), with_memory=with_memory)
        if disk != "absent":
            path = place(files, data)
            if disk is not None:
                damage(path, disk)
        has_it = disk is None or any(fault in (None, "full") for fault in states.values())
        for _ in range(2):
            if has_it:
                assert files.load(digest) == data
                assert files.settle()
                files.heal(digest)  # of damage that no load has met, as Redis comes first
                assert files.path(digest).read_bytes() == data
            else:
                with pytest.raises((VectorNotFound, TierUnavailable)):
                    files.load(digest)
        files.close()


def test_a_replica_without_the_file_gets_it_through_redis(
    tmp_path: Path, redis_url: str, redis_prefix: str
) -> None:
    """And has it on its own disk from then on."""
    settings = TierSettings(redis_url=redis_url, redis_prefix=redis_prefix)
    first = TieredFiles(tmp_path / "1", settings, with_memory=False)
    second = TieredFiles(tmp_path / "2", settings, with_memory=True)
    place(first)
    first.spread(DIGEST)
    assert second.load(DIGEST) == DATA
    assert second.stats()[REDIS].hits == 1
    assert second.settle()
    assert second.store.path(DIGEST).read_bytes() == DATA
    second.drop(DIGEST)
    third = TieredFiles(tmp_path / "3", settings, with_memory=True)
    with pytest.raises(VectorNotFound):
        third.load(DIGEST)
    for files in (first, second, third):
        files.close()


def test_a_killed_redis_fails_no_load(tmp_path: Path) -> None:
    """Before a load and in the middle of one; and a new, empty one is filled again."""
    with valkey(tmp_path) as server:
        settings = TierSettings(redis_url=server.url, redis_timeout_s=1)
        shared = TieredFiles(tmp_path / "1", settings, with_memory=False)
        place(shared)
        shared.spread(DIGEST)
        assert shared.load(DIGEST) == DATA
        assert shared.stats()[REDIS].hits == 1
        kill_midway(shared, server)
        assert shared.load(DIGEST) == DATA
        assert shared.stats()[DISK].hits == 1
        server.kill()
        assert shared.load(DIGEST) == DATA
        server.start()
        fresh = TieredFiles(tmp_path / "1", settings, with_memory=False)
        assert fresh.load(DIGEST) == DATA
        assert fresh.settle()
        assert fresh.load(DIGEST) == DATA
        assert fresh.stats()[REDIS].hits == 1
        shared.close()
        fresh.close()


def kill_midway(files: TieredFiles, server: Valkey) -> None:
    """The next load from Redis loses its server after the first bytes."""
    tier = files.tiers[0]
    fill = tier.fill

    def lost(digest: str, buffer: memoryview, progress: Callable[[int], None]) -> None:
        def told(nbytes: int) -> None:
            progress(nbytes)
            server.kill()

        fill(digest, buffer, told)

    tier.fill = lost  # type: ignore[method-assign]
