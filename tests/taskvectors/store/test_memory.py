"""The memory tier keeps within its budget, and never takes bytes from under whoever reads them."""

import hashlib
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from taskvectors.errors import VectorNotFound
from taskvectors.store.memory import MemoryTier, plain_pages

SEED = 17
KEYS = [f"{number:064x}" for number in range(10)]


def buffer(nbytes: int, value: int = 0) -> memoryview:
    return memoryview(bytearray([value]) * nbytes)


def kept(tier: MemoryTier) -> list[str]:
    return [key for key in KEYS if tier.size(key) is not None]


def test_what_was_kept_is_found_without_a_copy_and_cannot_be_written() -> None:
    tier, data = MemoryTier(10), buffer(4, 7)
    assert tier.keep(KEYS[0], data)
    found = tier.find(KEYS[0])
    assert found is not None
    assert found.obj is data.obj
    assert found.readonly
    assert (tier.size(KEYS[0]), tier.head(KEYS[0], 2)) == (4, b"\7\7")
    assert tier.head(KEYS[0], 100) == b"\7" * 4


def test_what_was_not_kept_is_not_there() -> None:
    tier = MemoryTier(10)
    assert tier.find(KEYS[0]) is tier.size(KEYS[0]) is tier.head(KEYS[0], 5) is None
    tier.drop(KEYS[0])
    with pytest.raises(VectorNotFound):
        tier.fill(KEYS[0], buffer(4), lambda _: None)


def test_a_put_copies() -> None:
    tier, data = MemoryTier(10), buffer(4, 1)
    assert tier.put(KEYS[0], data)
    data[0] = 9
    told: list[int] = []
    target = buffer(4)
    tier.fill(KEYS[0], target, told.append)
    assert target == b"\1" * 4
    assert told == [4]


def test_a_buffer_of_another_size_is_not_filled() -> None:
    tier = MemoryTier(10)
    tier.put(KEYS[0], buffer(4))
    with pytest.raises(VectorNotFound):
        tier.fill(KEYS[0], buffer(5), lambda _: None)


def test_the_least_recently_used_goes_first() -> None:
    """Being found is a use; being measured is none."""
    tier = MemoryTier(10)
    for key in KEYS[:3]:
        tier.keep(key, buffer(3))
    tier.find(KEYS[0])
    tier.size(KEYS[1])
    tier.head(KEYS[1], 1)
    tier.keep(KEYS[3], buffer(4))
    assert kept(tier) == [KEYS[0], KEYS[2], KEYS[3]]
    stats = tier.stats()
    assert (stats.nbytes, stats.budget, stats.evictions) == (10, 10, 1)


@pytest.mark.parametrize("enter", [MemoryTier.keep, MemoryTier.put])
def test_a_file_larger_than_the_budget_is_refused_and_evicts_nothing(
    enter: Callable[[MemoryTier, str, memoryview], bool],
) -> None:
    """One of exactly the budget is taken."""
    tier = MemoryTier(10)
    tier.keep(KEYS[0], buffer(10))
    assert not enter(tier, KEYS[1], buffer(11))
    assert kept(tier) == [KEYS[0]]
    assert enter(tier, KEYS[2], buffer(10))
    assert kept(tier) == [KEYS[2]]


def test_nothing_is_allocated_for_a_file_that_cannot_be_kept() -> None:
    def allocate(nbytes: int) -> memoryview:
        raise AssertionError(nbytes)

    assert not MemoryTier(10, allocate).put(KEYS[0], buffer(11))


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
def test_no_memory_is_no_room(error: type[Exception]) -> None:
    def allocate(_nbytes: int) -> memoryview:
        raise error

    tier = MemoryTier(10, allocate)
    assert not tier.put(KEYS[0], buffer(1))
    assert tier.stats().nbytes == 0


def test_the_same_file_twice_counts_once() -> None:
    tier = MemoryTier(10)
    first = buffer(6)
    assert tier.keep(KEYS[0], first)
    assert tier.keep(KEYS[0], buffer(6))
    assert tier.stats().nbytes == 6
    found = tier.find(KEYS[0])
    assert found is not None
    assert found.obj is first.obj


@pytest.mark.parametrize("leave", ["evicted", "dropped"])
def test_a_buffer_in_use_stays_as_it_is(leave: str) -> None:
    """Its owner has gone from the tier; the bytes live as long as the view."""
    tier = MemoryTier(10, plain_pages)
    tier.put(KEYS[0], buffer(10, 5))
    held = tier.find(KEYS[0])
    if leave == "dropped":
        tier.drop(KEYS[0])
    tier.put(KEYS[1], buffer(10, 6))
    assert tier.size(KEYS[0]) is None
    assert held == b"\5" * 10
    assert tier.stats().nbytes == 10


def test_an_empty_file_is_kept() -> None:
    tier = MemoryTier(0)
    assert tier.put(KEYS[0], buffer(0))
    assert tier.size(KEYS[0]) == 0
    assert not tier.put(KEYS[1], buffer(1))


def test_counts_are_of_what_happened() -> None:
    tier = MemoryTier(10)
    tier.keep(KEYS[0], buffer(4))
    tier.find(KEYS[0])
    tier.find(KEYS[1])
    tier.missed()
    stats = tier.stats()
    assert (stats.hits, stats.misses, stats.read_bytes, stats.written_bytes) == (1, 1, 4, 4)


def test_many_threads_never_pass_the_budget_nor_see_wrong_bytes() -> None:
    """Files of changing sizes come and go; each is found whole or not at all."""
    files = {}
    for number in range(40):
        data = bytes([number]) * (1 + 37 * number % 400)
        files[hashlib.sha256(data).hexdigest()] = data
    tier, wrong, done = MemoryTier(2000), [], threading.Event()

    def watch() -> None:
        while not done.is_set():
            if not 0 <= (tier.stats().nbytes or 0) <= 2000 + max(map(len, files.values())):
                wrong.append("budget")

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(1500):
            key = rng.choice(list(files))
            act = rng.random()
            if act < 0.4:
                tier.put(key, memoryview(files[key]))
            elif act < 0.9:
                found = tier.find(key)
                if found is not None and found != files[key]:
                    wrong.append(key)
            else:
                tier.drop(key)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(8) as threads:
        for job in [threads.submit(work, SEED + number) for number in range(8)]:
            job.result()
    done.set()
    watcher.join()
    assert wrong == []
    held = sum(size for key in files if (size := tier.size(key)) is not None)
    assert tier.stats().nbytes == held <= 2000
    assert tier.stats().evictions > 0
