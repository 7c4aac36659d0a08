"""Whose vectors go out for whom: floods stay within their share, and nobody else pays for them."""

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from taskvectors.errors import InvalidLoadout
from taskvectors.vllm_plugin.ledger import Ledger, Reservation
from taskvectors.vllm_plugin.shares import ACTIVE_S, HUNGRY_S, parts_of
from taskvectors.vllm_plugin.tenant import UNTAGGED, Tenant, tenant_of

A, B, C = Tenant("a"), Tenant("b"), Tenant("c")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Pool(Ledger):
    """A ledger with a clock of its own, and short words for tests."""

    def __init__(self, pool_bytes: int = 100, max_vectors: int = 99) -> None:
        self.clock = Clock()
        super().__init__(pool_bytes, max_vectors, self.clock)

    def use(self, tenant: Tenant | None, *digests: str, nbytes: int = 10) -> tuple[str, ...]:
        """Load vectors and let go of them; returns what went out for it."""
        held = self.take(tenant, *digests, nbytes=nbytes)
        assert held is not None
        self.release(held)
        return held.evict

    def take(
        self, tenant: Tenant | None, *digests: str, nbytes: int = 10, force: bool = False
    ) -> Reservation | None:
        return self.reserve(dict.fromkeys(digests, nbytes), tenant, force=force)

    def flood(self, tenant: Tenant, number: int, name: str = "") -> list[str]:
        """What went out for so many cold vectors."""
        names = [f"{name or tenant.tag}{i}" for i in range(number)]
        return [gone for digest in names for gone in self.use(tenant, digest)]


@pytest.mark.parametrize(
    ("shares", "parts"),
    [
        ({"a": None}, {"a": 1.0}),
        ({"a": None, "b": None}, {"a": 0.5, "b": 0.5}),
        ({"a": 0.25}, {"a": 1.0}),
        ({"a": 0.6, "b": None, "c": None}, {"a": 0.6, "b": 0.2, "c": 0.2}),
        ({"a": 0.2, "b": 0.3}, {"a": 0.4, "b": 0.6}),
        ({"a": 1.0, "b": 1.0}, {"a": 0.5, "b": 0.5}),
        ({"a": 1.0, "b": None}, {"a": 1.0, "b": 0.0}),
        ({"a": 0.0, "b": 0.0}, {"a": 0.5, "b": 0.5}),
        ({}, {}),
    ],
)
def test_the_pool_is_divided_among_the_active(shares: dict, parts: dict) -> None:
    """Explicit shares first, the rest in equal parts, and nothing of it lies idle."""
    assert parts_of(shares) == pytest.approx(parts)


def test_a_flood_evicts_its_own_vectors_first() -> None:
    """Though the other's were used longer ago."""
    pool = Pool()
    assert pool.flood(B, 5) == []
    evicted = pool.flood(A, 40)
    assert len(evicted) == 35
    assert not [digest for digest in evicted if digest.startswith("b")]


def test_an_idle_share_is_borrowed_and_given_back() -> None:
    """Alone, a tenant may fill the pool; whoever comes has its half out of what is too much."""
    pool = Pool()
    assert pool.flood(A, 10) == []
    given_back = pool.flood(B, 5)
    assert given_back == [f"a{i}" for i in range(5)]
    assert pool.flood(B, 10, "more")[:5] == [f"b{i}" for i in range(5)], "its own from then on"


def test_what_nobody_active_owns_is_free_to_take() -> None:
    """A tenant that went away protects nothing; nor does who only prefetched."""
    pool = Pool()
    pool.flood(B, 5)
    for number in range(2):
        pool.use(None, f"prefetched{number}")
    pool.clock.now += ACTIVE_S + 1
    pool.flood(C, 3)
    assert pool.flood(A, 5)[:5] == [*(f"b{i}" for i in range(5))]


def test_an_explicit_share_is_kept() -> None:
    """Three quarters for one, whatever the other does."""
    rich, poor = Tenant("rich", 0.75), Tenant("poor")
    pool = Pool()
    pool.flood(rich, 7)
    evicted = pool.flood(poor, 30)
    assert not [digest for digest in evicted if digest.startswith("rich")]
    assert pool.division().held("poor").nbytes == 30


def test_columns_are_shared_as_bytes_are() -> None:
    """A flood of tiny vectors takes no more than its part of them."""
    pool = Pool(10_000, 10)
    pool.flood(B, 5)
    assert not [digest for digest in pool.flood(A, 30) if digest.startswith("b")]


def test_a_vector_of_several_counts_for_each_in_part_and_is_protected_by_any() -> None:
    """Who shares holds less; a flood does not evict what another within its share uses, too."""
    pool = Pool()
    for tenant in (A, B):
        pool.use(tenant, "common", nbytes=40)
    assert pool.division().held("a").nbytes == pool.division().held("b").nbytes == 20
    evicted = pool.flood(A, 30)
    assert "common" not in evicted
    assert pool.num_vectors == 7


def test_vectors_in_use_never_go() -> None:
    """Not even where that is the only way."""
    pool = Pool()
    held = [pool.take(A, f"a{i}") for i in range(10)]
    assert all(held)
    assert pool.take(B, "b0") is None
    assert pool.take(B, "b0", force=True) is None
    assert pool.exceeds_share({"a99": 10}, A)
    assert not pool.exceeds_share({"b0": 10}, B)
    assert (pool.is_running(A), pool.is_running(B)) == (True, False)


def test_pinned_vectors_count_for_nobody() -> None:
    """What is left of the pool is what is divided."""
    pool = Pool()
    assert pool.take(None, "pinned", nbytes=40) is not None
    pool.use(B, "b0")
    pool.use(A, "a0")
    assert pool.division().share("a").nbytes == 30
    evicted = pool.flood(A, 20)
    assert not [digest for digest in evicted if not digest.startswith("a")]


def test_a_loadout_larger_than_its_share_takes_the_protected_only_by_force() -> None:
    """Which it has once it has waited long; what is nobody's or its own goes first."""
    pool = Pool()
    pool.flood(B, 5)
    pool.flood(A, 5)
    big = {f"big{i}": 10 for i in range(7)}
    assert pool.reserve(big, A) is None
    held = pool.reserve(big, A, force=True)
    assert held is not None
    assert held.evict == ("a0", "a1", "a2", "a3", "a4", "b0", "b1")


def test_lent_room_that_is_in_use_comes_back_as_it_is_let_go() -> None:
    """Meanwhile its owner makes do with what it has, and the borrower begins nothing more."""
    pool = Pool()
    pool.use(B, "b0")
    held = [pool.take(A, f"a{i}") for i in range(9)]
    assert all(held)
    assert pool.use(B, "b1") == ("b0",), "it has room for one, and lacks four"
    assert pool.take(A, "a9") is None
    pool.release(held[0])
    assert pool.take(A, "a0") is None, "it would be more than its share again"
    held.append(pool.take(A, "a8"))
    assert held[-1] is not None, "which is in use anyhow"
    assert pool.use(B, "b0") == ("a0",)
    pool.clock.now += HUNGRY_S + 1
    pool.release(held[1])
    assert pool.use(A, "a9") == ("a1",), "nobody lacks anything"


def test_without_tags_it_is_the_least_recently_used() -> None:
    """Exactly, also with what was prefetched or pinned."""
    pool = Pool()
    pool.use(None, "prefetched", nbytes=50)
    pool.use(UNTAGGED, "x", nbytes=40)
    pool.use(None, "y", nbytes=10)
    assert pool.use(UNTAGGED, "z", nbytes=60) == ("prefetched", "x")


def test_headers_name_a_tenant() -> None:
    """A tag and a share; without a tag there is one tenant, and what cannot be is refused."""
    assert tenant_of([]) == UNTAGGED
    tag, share = (b"x-taskvectors-tenant", b"ab12"), (b"x-taskvectors-share", b"0.25")
    assert tenant_of([tag]) == Tenant("ab12")
    assert tenant_of([share, tag]) == Tenant("ab12", 0.25)
    for wrong in (b"", b"a b", b"x" * 65):
        with pytest.raises(InvalidLoadout, match="x-taskvectors-tenant must be up to 64"):
            tenant_of([(tag[0], wrong)])
    for wrong in (b"", b"half", b"-0.1", b"1.5", b"nan"):
        with pytest.raises(InvalidLoadout, match="x-taskvectors-share must be a number from 0"):
            tenant_of([tag, (share[0], wrong)])


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdefghij"), st.integers(1, 40), st.booleans()), max_size=60
    )
)
def test_one_tenant_sees_the_least_recently_used_go(orders: list) -> None:
    """Whatever its tag is, as if there were none."""
    tagged, plain = Pool(100, 5), Pool(100, 5)
    sizes: dict[str, int] = {}
    for digest, nbytes, stays in orders:
        needs = {digest: sizes.setdefault(digest, nbytes)}
        found = [tagged.reserve(needs, A), plain.reserve(needs)]
        evicted = [None if held is None else held.evict for held in found]
        assert evicted[0] == evicted[1]
        if not stays and found[0] and found[1]:
            tagged.release(found[0])
            plain.release(found[1])


@dataclass(eq=False)
class Running:
    tenant: Tenant
    reservation: Reservation


class Machine(RuleBasedStateMachine):
    """Tenants ask for vectors of their own and common ones, in any order and at any time.

    What protects whom is computed here anew, from who used what.
    """

    POOL, COLUMNS = 100, 12

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(self.POOL, self.COLUMNS)
        self.running: list[Running] = []
        self.owners: dict[str, set[str]] = {}
        self.seen: dict[str, float] = {}
        self.sizes: dict[str, int] = {}
        self.evicted = 0

    @rule(
        tenant=st.sampled_from([A, B, C, Tenant("d", 0.5)]),
        common=st.booleans(),
        numbers=st.sets(st.integers(0, 7), min_size=1, max_size=3),
        nbytes=st.integers(1, 20),
        force=st.booleans(),
    )
    def ask(
        self, tenant: Tenant, common: bool, numbers: set[int], nbytes: int, force: bool
    ) -> None:
        names = [f"{'common' if common else tenant.tag}{number}" for number in numbers]
        needs = {name: self.sizes.setdefault(name, nbytes) for name in names}
        self.seen[tenant.tag] = self.pool.clock.now
        protected = self._within_share() - {tenant.tag}
        held = self.pool.reserve(needs, tenant, force=force)
        if held is None:
            return
        in_use = {entry.digest for run in self.running for entry in run.reservation.entries}
        for gone in held.evict:
            owners = self.owners.pop(gone)
            assert gone not in in_use, "a vector in use was evicted"
            assert force or not owners & protected, "a tenant within its share was evicted"
        self.evicted += len(held.evict)
        for name in names:
            self.owners.setdefault(name, set()).add(tenant.tag)
        self.running.append(Running(tenant, held))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(self.running))
        self.running.remove(run)
        self.seen[run.tenant.tag] = self.pool.clock.now
        self.pool.release(run.reservation)

    @rule(seconds=st.sampled_from([1.0, ACTIVE_S / 2, 2 * ACTIVE_S]))
    def wait(self, seconds: float) -> None:
        self.pool.clock.now += seconds

    def _within_share(self) -> set[str]:
        now = self.pool.clock.now
        busy = {run.tenant.tag for run in self.running}
        active = {tag for tag, seen in self.seen.items() if now - seen <= ACTIVE_S} | busy
        parts = parts_of({tag: 0.5 if tag == "d" else None for tag in sorted(active)})
        nbytes, columns = dict.fromkeys(active, 0.0), dict.fromkeys(active, 0.0)
        for digest, owners in self.owners.items():
            for tag in owners & active:
                nbytes[tag] += self.sizes[digest] / len(owners & active)
                columns[tag] += 1 / len(owners & active)
        return {
            tag
            for tag in active
            if nbytes[tag] <= parts[tag] * self.POOL and columns[tag] <= parts[tag] * self.COLUMNS
        }

    @invariant()
    def the_budget_holds(self) -> None:
        assert self.pool.used_bytes == sum(self.sizes[digest] for digest in self.owners)
        assert self.pool.used_bytes <= self.POOL
        assert self.pool.num_vectors == len(self.owners) <= self.COLUMNS
        division = self.pool.division()
        held = sum(division.held(tag).nbytes for tag in division.parts)
        assert held <= self.pool.used_bytes + 1e-6

    def teardown(self) -> None:
        """Nobody is left without room once all have ended: with force, each is served."""
        for run in self.running:
            self.pool.release(run.reservation)
        for tenant, number in itertools.product([A, B, C], range(3)):
            assert self.pool.take(tenant, f"last{tenant.tag}{number}", force=True) is not None


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
