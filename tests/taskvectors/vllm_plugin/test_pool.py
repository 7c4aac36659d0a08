"""The resident pool loads in order, forgets what is not wanted any more, and survives anything."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from taskvectors.footprint import resident_bytes
from taskvectors.format import FileHeader, write_vector
from taskvectors.store import DirectoryStore
from taskvectors.store.settings import TierSettings
from taskvectors.store.tiered import TieredFiles
from taskvectors.vector import BaseInfo, DenseDelta, TaskVector
from taskvectors.vllm_plugin.pool import ResidentPool

DEADLINE_S = 30.0
NBYTES = 12
"""Of a vector of this module on the device."""


class Installed:
    """Stands in for a layer's deltas: the columns that are installed."""

    def __init__(self, columns: frozenset[int] = frozenset()) -> None:
        self.columns = columns

    def with_vector(self, column: int, _staged: object) -> "Installed":
        return Installed(self.columns | {column})

    def without_vector(self, column: int) -> "Installed":
        return Installed(self.columns - {column})


class Stager:
    """Stages for one site; waits for `gate`, and fails with `error` if there is one."""

    def __init__(self) -> None:
        self.site = SimpleNamespace(deltas=Installed())
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.num_staged = 0

    def nbytes(self, header: FileHeader) -> int:
        return resident_bytes(header, 4, 4)

    def stage(self, _vector: TaskVector, _column: int) -> list[tuple[object, None]]:
        assert self.gate.wait(DEADLINE_S)
        self.num_staged += 1
        if self.error is not None:
            raise self.error
        return [(self.site, None)]


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def _add(store: DirectoryStore, value: float) -> str:
    path = store.root / "vector"
    values = np.full(3, value, dtype=np.float32)
    vector = TaskVector(base=BaseInfo("b", None), parameters={"norm.weight": DenseDelta(values)})
    write_vector(vector, path)
    return store.add(path)


def _pool(store: DirectoryStore, stager: Stager) -> ResidentPool:
    files = TieredFiles(store.root, TierSettings(), with_memory=True)
    return ResidentPool(files, stager)  # type: ignore[arg-type]


def _wait(pool: ResidentPool, digest: str, state: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not pool.status().get(digest, "").startswith(state):
        assert time.monotonic() < deadline, pool.status()
        time.sleep(0.005)


def test_a_vector_is_ready_only_when_it_is_installed(store: DirectoryStore) -> None:
    stager, digest = Stager(), _add(store, 1.0)
    pool = _pool(store, stager)
    stager.gate.clear()
    pool.apply([], {digest: (3, NBYTES)})
    assert pool.status() == {digest: "loading"}
    assert pool.column(digest) is None
    stager.gate.set()
    _wait(pool, digest, "ready")
    assert pool.column(digest) == 3
    assert stager.site.deltas.columns == {3}


def test_an_old_load_never_stands_for_a_new_order(store: DirectoryStore) -> None:
    """Evicted while it loads and ordered again into the same column, with another between."""
    stager, first, second = Stager(), _add(store, 1.0), _add(store, 2.0)
    pool = _pool(store, stager)
    stager.gate.clear()
    pool.apply([], {first: (0, NBYTES)})
    pool.apply([first], {second: (0, NBYTES)})
    pool.apply([second], {first: (0, NBYTES)})
    ready_without_deltas = []
    watch = threading.Thread(target=_watch, args=(pool, stager, first, ready_without_deltas))
    watch.start()
    stager.gate.set()
    _wait(pool, first, "ready")
    watch.join()
    assert ready_without_deltas == []
    assert stager.site.deltas.columns == {0}
    assert stager.num_staged <= 2, "an order that nobody wants any more is not worth a load"


def _watch(pool: ResidentPool, stager: Stager, digest: str, wrong: list[str]) -> None:
    for _ in range(2000):
        if pool.status().get(digest) == "ready":
            if stager.site.deltas.columns != {0}:
                wrong.append("ready, but not installed")
            return
        time.sleep(0.001)


def test_an_evicted_vector_is_uninstalled(store: DirectoryStore) -> None:
    stager, first, second = Stager(), _add(store, 1.0), _add(store, 2.0)
    pool = _pool(store, stager)
    pool.apply([], {first: (0, NBYTES)})
    _wait(pool, first, "ready")
    pool.apply([first], {second: (1, NBYTES)})
    _wait(pool, second, "ready")
    assert pool.column(first) is None
    assert stager.site.deltas.columns == {1}


@pytest.mark.parametrize("error", [KeyError("/secret/path"), AssertionError(), MemoryError()])
def test_the_loader_survives_any_error_and_tells_no_paths(
    store: DirectoryStore, error: Exception
) -> None:
    stager, digest, other = Stager(), _add(store, 1.0), _add(store, 2.0)
    pool = _pool(store, stager)
    stager.error = error
    pool.apply([], {digest: (0, NBYTES)})
    _wait(pool, digest, "failed: ")
    assert type(error).__name__ in pool.status()[digest]
    assert "secret" not in pool.status()[digest]
    stager.error = None
    pool.apply([digest], {other: (0, NBYTES)})
    _wait(pool, other, "ready")


def test_a_file_that_changed_on_disk_goes_away(store: DirectoryStore) -> None:
    stager, digest = Stager(), _add(store, 1.0)
    pool = _pool(store, stager)
    path = store.path(digest)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    pool.apply([], {digest: (0, NBYTES)})
    _wait(pool, digest, "missing: ")
    assert stager.num_staged == 0
    assert not path.exists()


@pytest.mark.parametrize("reserved", [NBYTES - 1, NBYTES + 1, 0])
def test_a_vector_of_another_size_than_was_reserved_is_not_staged(
    store: DirectoryStore, reserved: int
) -> None:
    """The room was reserved by a header that nobody had checked; the file has been."""
    stager, digest = Stager(), _add(store, 1.0)
    pool = _pool(store, stager)
    pool.apply([], {digest: (0, reserved)})
    _wait(pool, digest, "away: ")
    assert f"takes {NBYTES} bytes" in pool.status()[digest]
    assert f"claimed {reserved}" in pool.status()[digest]
    assert stager.num_staged == 0
    assert pool.num_loads == 0
    pool.apply([digest], {digest: (0, NBYTES)})
    _wait(pool, digest, "ready")


def test_a_column_and_its_bytes_may_come_as_a_list(store: DirectoryStore) -> None:
    """A pair that went through a message is one."""
    stager, digest = Stager(), _add(store, 1.0)
    pool = _pool(store, stager)
    pool.apply([], {digest: [2, NBYTES]})  # type: ignore[dict-item]
    _wait(pool, digest, "ready")
    assert pool.column(digest) == 2


def test_a_vector_that_waits_in_memory_is_not_read_again(store: DirectoryStore) -> None:
    stager, digest = Stager(), _add(store, 1.0)
    pool = _pool(store, stager)
    pool.apply([], {digest: (0, NBYTES)})
    _wait(pool, digest, "ready")
    store.discard(digest)
    pool.apply([digest], {})
    pool.apply([], {digest: (1, NBYTES)})
    _wait(pool, digest, "ready")
    assert pool.num_loads == 2
