"""The worker brings vectors into host memory one after another, and says how far it has come."""

import hashlib
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from taskvectors.errors import TierUnavailable, VectorNotFound
from taskvectors.store.memory import MemoryTier
from taskvectors.vllm_plugin import prefetching
from taskvectors.vllm_plugin.prefetching import Prefetcher

DEADLINE_S = 30.0
BUDGET = 100


class Files:
    """Tiers with a real memory in front; loads wait for `gate`, and raise what `errors` says."""

    def __init__(self, *, has_memory: bool = True) -> None:
        self.memory = MemoryTier(BUDGET)
        self.tiers = (self.memory,) if has_memory else (SimpleNamespace(name="disk"),)
        self.files: dict[str, bytes] = {}
        self.errors: dict[str, Exception] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.loads: list[str] = []

    def add(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self.files[digest] = data
        return digest

    def load(self, digest: str) -> memoryview:
        self.loads.append(digest)
        assert self.gate.wait(DEADLINE_S)
        if digest in self.errors:
            raise self.errors[digest]
        data = memoryview(bytearray(self.files[digest]))
        self.memory.keep(digest, data)
        return data


def prefetcher_of(files: Files) -> Prefetcher:
    return Prefetcher(files)  # type: ignore[arg-type]


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def ended(prefetcher: Prefetcher, digest: str) -> str:
    """The state in which a vector ends."""
    wait_for(lambda: prefetcher.states([digest])[digest] != "loading")
    return prefetcher.states([digest])[digest]


def test_a_vector_comes_into_memory() -> None:
    files = Files()
    digest, prefetcher = files.add(b"bytes"), prefetcher_of(files)
    files.gate.clear()
    prefetcher.prefetch([digest])
    assert prefetcher.states([digest]) == {digest: "loading"}
    files.gate.set()
    assert ended(prefetcher, digest) == "memory"
    assert files.memory.find(digest) == b"bytes"


def test_nobody_waits_and_nothing_is_queued_twice() -> None:
    files = Files()
    digests, prefetcher = [files.add(b"%d" % i) for i in range(3)], prefetcher_of(files)
    files.gate.clear()
    for _ in range(100):
        prefetcher.prefetch(digests)
    files.gate.set()
    assert [ended(prefetcher, digest) for digest in digests] == ["memory"] * 3
    assert files.loads == digests


def test_what_was_evicted_is_brought_again() -> None:
    files = Files()
    digest, prefetcher = files.add(b"bytes"), prefetcher_of(files)
    for _ in range(2):
        prefetcher.prefetch([digest])
        assert ended(prefetcher, digest) == "memory"
        files.memory.drop(digest)
    assert files.loads == [digest] * 2


def test_what_nobody_asked_for_has_no_state() -> None:
    assert prefetcher_of(Files()).states(["a" * 64]) == {}


def test_a_file_larger_than_the_memory_says_so() -> None:
    files = Files()
    digest, prefetcher = files.add(bytes(BUDGET + 1)), prefetcher_of(files)
    prefetcher.prefetch([digest])
    assert ended(prefetcher, digest) == "failed: its 101 bytes do not fit the engine's host memory"


def test_an_engine_without_memory_says_so() -> None:
    files = Files(has_memory=False)
    digest, prefetcher = files.add(b"bytes"), prefetcher_of(files)
    prefetcher.prefetch([digest])
    state = prefetcher.states([digest])[digest]
    assert state == "failed: the engine keeps no vectors in host memory"
    assert files.loads == []


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (VectorNotFound("no task vector"), "missing: no task vector"),
        (TierUnavailable("redis is away"), "away: redis is away"),
        (KeyError("/secret/path"), "failed: KeyError; the engine's log says more"),
        (MemoryError(), "failed: MemoryError; the engine's log says more"),
    ],
)
def test_a_failure_is_told_and_the_next_is_loaded(error: Exception, state: str) -> None:
    files = Files()
    wrong, right, prefetcher = files.add(b"1"), files.add(b"2"), prefetcher_of(files)
    files.errors[wrong] = error
    prefetcher.prefetch([wrong, right])
    assert ended(prefetcher, wrong) == state
    assert ended(prefetcher, right) == "memory"
    files.errors.clear()
    prefetcher.prefetch([wrong])
    assert ended(prefetcher, wrong) == "memory"


def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetching, "MAX_QUEUED", 2)
    files = Files()
    digests, prefetcher = [files.add(b"%d" % i) for i in range(4)], prefetcher_of(files)
    files.gate.clear()
    prefetcher.prefetch(digests[:1])
    wait_for(lambda: files.loads == digests[:1])
    prefetcher.prefetch(digests[1:])
    assert prefetcher.states(digests[3:]) == {digests[3]: "failed: 2 vectors wait to be prefetched"}
    files.gate.set()
    assert ended(prefetcher, digests[2]) == "memory"
    assert files.loads == digests[:3]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetching, "MAX_REMEMBERED", 2)
    files = Files()
    digests, prefetcher = [files.add(b"%d" % i) for i in range(3)], prefetcher_of(files)
    for digest in digests:
        prefetcher.prefetch([digest])
        ended(prefetcher, digest)
    assert prefetcher.states(digests).keys() == set(digests[1:])
