"""The ledger keeps its budget, never evicts what is in use, and loses no column."""

import random

import pytest

from taskvectors.errors import PoolTooSmall
from taskvectors.vllm_plugin.ledger import Ledger, Reservation


def test_the_least_recently_used_idle_vector_goes_first() -> None:
    ledger = Ledger(pool_bytes=20, max_vectors=9)
    for digest in "ab":
        ledger.release(_held(ledger.reserve({digest: 10})))
    ledger.release(_held(ledger.reserve({"a": 10})))
    assert _held(ledger.reserve({"c": 10})).evict == ("b",)


def test_a_vector_in_use_is_never_evicted() -> None:
    ledger = Ledger(pool_bytes=20, max_vectors=9)
    held = _held(ledger.reserve({"a": 20}))
    assert ledger.reserve({"b": 10}) is None
    ledger.release(held)
    assert _held(ledger.reserve({"b": 10})).evict == ("a",)


def test_a_loadout_larger_than_the_pool_is_refused_for_good() -> None:
    with pytest.raises(PoolTooSmall, match="30 bytes"):
        Ledger(pool_bytes=20, max_vectors=9).reserve({"a": 15, "b": 15})
    with pytest.raises(PoolTooSmall, match="holds 1"):
        Ledger(pool_bytes=20, max_vectors=1).reserve({"a": 1, "b": 1})


def test_columns_run_out_before_bytes() -> None:
    ledger = Ledger(pool_bytes=100, max_vectors=1)
    ledger.release(_held(ledger.reserve({"a": 1})))
    held = _held(ledger.reserve({"b": 1}))
    assert held.evict == ("a",)
    assert held.load == {"b": 0}


def test_a_resident_vector_is_not_loaded_again() -> None:
    ledger = Ledger(pool_bytes=100, max_vectors=4)
    ledger.reserve({"a": 1})
    assert _held(ledger.reserve({"a": 1, "b": 1})).load.keys() == {"b"}


@pytest.mark.parametrize("seed", range(20))
def test_random_traffic_keeps_every_invariant(seed: int) -> None:
    print(f"seed {seed}")
    dice = random.Random(seed)
    sizes = {f"v{i}": dice.randint(1, 40) for i in range(12)}
    ledger, running, resident = Ledger(pool_bytes=100, max_vectors=5), [], {}
    for _ in range(400):
        if running and dice.random() < 0.5:
            ledger.release(running.pop(dice.randrange(len(running))))
            continue
        needs = {d: sizes[d] for d in dice.sample(sorted(sizes), dice.randint(1, 2))}
        held = ledger.reserve(needs)
        if held is None:
            continue
        running.append(held)
        for digest in held.evict:
            del resident[digest]
        assert not held.load.keys() & resident.keys()
        resident |= held.load
        assert len(set(resident.values())) == len(resident) <= 5
        assert sum(sizes[d] for d in resident) == ledger.used_bytes <= 100
        assert all(e.digest in resident for r in running for e in r.entries)


def _held(reservation: Reservation | None) -> Reservation:
    assert reservation is not None
    return reservation
