"""Cached answers: right, or late by no more than they may be, whatever happens at once."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from outfitter.errors import CatalogUnavailable
from outfitter.state import answers as answers_module
from outfitter.state.changes import Changes
from outfitter.state.generation import BOUND_S
from outfitter.state.records import Details, FileFacts, SavedLoadout, Version
from outfitter.state.resolver import Resolver
from outfitter.waiting import WouldWait, at_once
from taskvectors.errors import VectorNotFound
from taskvectors.spec import Reference

STABLE = Reference.parse("acme/legal@stable")
THIRD = Reference.parse("acme/legal@3")


def version_of(number: int, card: str = "") -> Version:
    facts = FileFacts(f"{number:064x}", 1, None, None, 1, 1, 1)
    return Version("acme/legal", number, facts, Details(card=card), 0, None, 0, ())


def saved_of(number: int) -> SavedLoadout:
    return SavedLoadout("acme/bot", number, f"{number:064x}", "{}", {}, 0)


class StandIn:
    """A catalog in memory: slow, away or changing as a test wants, and it counts."""

    def __init__(self) -> None:
        self.values: dict[Reference, Version] = {STABLE: version_of(1), THIRD: version_of(3)}
        self.saved = {("acme/bot", number): saved_of(number) for number in (1, 2)}
        self.saved["acme/bot", None] = saved_of(2)
        self.now = 1
        self.asked: Counter[object] = Counter()
        self.is_away = False
        self.delay: Callable[[], float] = lambda: 0.0
        self._lock = threading.Lock()

    def generation(self) -> int:
        with self._lock:
            self.asked["generation"] += 1
            found = self.now
        return self._late(found)

    def version(self, reference: Reference, viewer: object = None) -> Version:
        with self._lock:
            self.asked[reference] += 1
            found = self.values.get(reference)
        if self._late(found) is None:
            raise VectorNotFound(f"no task vector {str(reference)!r}")
        return found

    def loadout(self, name: str, version: int | None = None, viewer: object = None) -> SavedLoadout:
        with self._lock:
            self.asked[name] += 1
            found = self.saved.get((name, version))
        if self._late(found) is None:
            raise VectorNotFound(f"no saved loadout {name!r}")
        return found

    def move(self, name: str, number: int) -> None:
        with self._lock:
            self.now += 1
            self.saved[name, None] = self.saved[name, number]

    def commit(self, reference: Reference, version: Version | None) -> None:
        with self._lock:
            self.now += 1
            self.values.pop(reference, None)
            if version is not None:
                self.values[reference] = version

    def _late(self, found):
        time.sleep(self.delay())
        if self.is_away:
            raise CatalogUnavailable("the catalog's database does not answer")
        return found


@pytest.fixture
def catalog() -> StandIn:
    return StandIn()


@pytest.fixture
def alone(catalog: StandIn) -> Iterator[Resolver]:
    """A resolver that hears of nothing."""
    resolver = Resolver(catalog, Changes(None, "t"))
    yield resolver
    resolver.close()


def eventually(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def test_an_answer_is_remembered(catalog: StandIn, alone: Resolver) -> None:
    """A hundred requests ask the catalog for a version once."""
    for _ in range(100):
        assert alone.version(STABLE).version == 1
    assert catalog.asked[STABLE] == 1


def test_an_idle_resolver_asks_nothing(catalog: StandIn, alone: Resolver) -> None:
    """The catalog is asked while requests come, not because time passes."""
    alone.version(STABLE)
    eventually(lambda: not alone._generation._reading)
    asked = catalog.asked.total()
    time.sleep(3 * BOUND_S)
    assert catalog.asked.total() == asked


def test_a_moved_tag_is_seen_within_the_bound(catalog: StandIn, alone: Resolver) -> None:
    """Without a word from anybody."""
    assert alone.version(STABLE).version == 1
    catalog.commit(STABLE, version_of(2))
    time.sleep(BOUND_S + 0.01)
    assert alone.version(STABLE).version == 2


def test_the_replica_that_wrote_answers_with_it_at_once(catalog: StandIn, alone: Resolver) -> None:
    """However young what was confirmed before it is."""
    for number in range(2, 50):
        alone.version(STABLE)
        catalog.commit(STABLE, version_of(number))
        alone.changed()
        assert alone.version(STABLE).version == number


def test_a_read_from_before_a_write_is_not_taken_for_one_after_it(
    catalog: StandIn, alone: Resolver
) -> None:
    """The generation that was being read when the write came says nothing about it."""
    catalog.delay = lambda: 0.3
    with ThreadPoolExecutor() as pool:
        early = pool.submit(alone.version, STABLE)
        eventually(lambda: catalog.asked["generation"] == 1)
        catalog.commit(STABLE, version_of(2))
        alone.changed()
        assert alone.version(STABLE).version == 2
        early.result()
    assert alone.version(STABLE).version == 2


def test_an_absence_is_remembered_until_something_changes(
    catalog: StandIn, alone: Resolver
) -> None:
    """A name that is published later is found."""
    absent = Reference.parse("acme/new")
    for _ in range(3):
        with pytest.raises(VectorNotFound, match="acme/new"):
            alone.version(absent)
    assert catalog.asked[absent] == 1
    catalog.commit(absent, version_of(9))
    alone.changed()
    assert alone.version(absent).version == 9


def test_requests_for_one_reference_ask_once(catalog: StandIn, alone: Resolver) -> None:
    """A hundred at the same moment share one question, and one read of the generation."""
    catalog.delay = lambda: 0.2
    with ThreadPoolExecutor(100) as pool:
        found = list(pool.map(lambda _: alone.version(STABLE).version, range(100)))
    assert found == [1] * 100
    assert catalog.asked == {"generation": 1, STABLE: 1}


def test_a_slow_question_holds_up_nobody_else(catalog: StandIn, alone: Resolver) -> None:
    """No lock is held while the catalog is asked."""
    alone.version(THIRD)
    asked, free = threading.Event(), threading.Event()
    catalog.version = lambda reference, viewer=None: (asked.set(), free.wait(10), version_of(1))[2]
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(alone.version, STABLE)
        assert asked.wait(10)
        assert alone.version(THIRD).version == 3
        assert not slow.done()
        free.set()
        assert slow.result().version == 1


def test_while_the_catalog_is_away_what_can_move_is_unknown(
    catalog: StandIn, alone: Resolver
) -> None:
    """A tag is an error; a version by number is answered, and again both when it is back."""
    alone.version(STABLE), alone.version(THIRD)
    catalog.is_away = True
    time.sleep(BOUND_S + 0.01)
    with pytest.raises(CatalogUnavailable):
        alone.version(STABLE)
    assert alone.version(THIRD).version == 3
    with pytest.raises(CatalogUnavailable):
        alone.version(Reference.parse("acme/legal@4"))
    catalog.is_away = False
    eventually(lambda: answers(alone, STABLE))
    assert alone.version(STABLE).version == 1


def test_a_version_that_this_replica_deleted_is_not_answered_while_the_catalog_is_away(
    catalog: StandIn, alone: Resolver
) -> None:
    """Rather nothing than what may be gone."""
    alone.version(THIRD)
    catalog.commit(THIRD, None)
    alone.changed()
    catalog.is_away = True
    with pytest.raises(CatalogUnavailable):
        alone.version(THIRD)


def test_while_the_catalog_hangs_one_caller_waits_and_the_others_are_told(
    catalog: StandIn, alone: Resolver
) -> None:
    """A time-out of the database is not every request's."""
    alone.version(THIRD)
    catalog.is_away = True
    time.sleep(BOUND_S + 0.01)
    assert not answers(alone, STABLE)
    free = threading.Event()
    catalog.delay = lambda: free.wait(10) and 0.0
    with ThreadPoolExecutor() as pool:
        time.sleep(BOUND_S)
        asked = catalog.asked["generation"]
        waiting = pool.submit(answers, alone, STABLE)
        eventually(lambda: catalog.asked["generation"] > asked)
        assert alone.version(THIRD).version == 3
        assert not answers(alone, STABLE)
        assert not waiting.done()
        free.set()


def answers(resolver: Resolver, reference: Reference) -> bool:
    try:
        resolver.version(reference)
    except CatalogUnavailable:
        return False
    return True


def test_memory_is_bounded_in_bytes_and_in_number(
    catalog: StandIn, alone: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked for longest ago is forgotten first."""
    monkeypatch.setattr(answers_module, "MAX_ANSWERS", 3)
    monkeypatch.setattr(answers_module, "MAX_BYTES", 2500)
    names = [Reference.parse(f"n{number}") for number in range(5)]
    catalog.values = {name: version_of(1, "x" * 1000) for name in names}
    for name in names:
        alone.version(name)
    assert [asked for asked, _ in alone._versions._answers] == names[3:]
    assert alone._versions._nbytes == 2000
    catalog.values = {name: version_of(1) for name in names}
    alone.changed()
    catalog.now += 1
    for name in names:
        alone.version(name)
    assert [asked for asked, _ in alone._versions._answers] == names[2:]
    assert alone._versions._nbytes == 0


def test_after_close_answers_still_come(catalog: StandIn, alone: Resolver) -> None:
    """Requests that are drained while the gateway stops lose nothing."""
    alone.version(STABLE)
    alone.close()
    time.sleep(BOUND_S - 0.15)
    assert alone.version(STABLE).version == 1
    alone.changed()
    assert alone.version(STABLE).version == 1


@pytest.mark.parametrize("seed", range(3))
def test_no_answer_is_later_than_the_bound(catalog: StandIn, seed: int) -> None:
    """Two replicas, random writes, delays and outages: every answer was right half a second ago."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    catalog.delay = lambda: rng.choice((0.0, 0.0, 0.002, 0.02, 0.1))
    replicas = [Resolver(catalog, Changes(None, "t")) for _ in range(2)]
    committed: list[tuple[float, int]] = [(0.0, 1)]
    late: list[str] = []
    stop = threading.Event()

    def read(replica: Resolver) -> None:
        while not stop.is_set():
            arrived = time.monotonic()
            try:
                found = replica.version(STABLE).version
            except CatalogUnavailable:
                continue
            known = max(number for at, number in list(committed) if at <= arrived - BOUND_S)
            if found is not None and found < known:
                late.append(f"{found} at {arrived}, but {known} was known")
            time.sleep(0.001)

    def write(number: int) -> None:
        catalog.is_away = rng.random() < 0.1
        catalog.commit(STABLE, version_of(number))
        committed.append((time.monotonic(), number))
        if not catalog.is_away and rng.random() < 0.5:
            replicas[0].changed()
            eventually(lambda: answers(replicas[0], STABLE))
            assert replicas[0].version(STABLE).version == number

    with ThreadPoolExecutor() as pool:
        for replica in replicas * 3:
            pool.submit(read, replica)
        try:
            for number in range(2, 40):
                write(number)
                time.sleep(rng.choice((0.0, 0.05, 0.2)))
        finally:
            stop.set()
    for replica in replicas:
        replica.close()
    assert late == []


def test_a_saved_loadout_is_remembered_until_something_changes(
    catalog: StandIn, alone: Resolver
) -> None:
    """One question, and the next after a move, which the replica that moved it sees at once."""
    name = Reference.parse("acme/bot")
    assert [alone.loadout(name).version for _ in range(5)] == [2] * 5
    assert catalog.asked["acme/bot"] == 1
    catalog.move("acme/bot", 1)
    alone.changed()
    assert alone.loadout(name).version == 1
    assert alone.loadout(Reference.parse("acme/bot@2")).version == 2
    with pytest.raises(VectorNotFound, match="no saved loadout 'acme/bot'"):
        alone.loadout(Reference.parse("acme/bot@3"))


def test_another_replica_sees_a_move_within_the_bound(catalog: StandIn, alone: Resolver) -> None:
    """Nobody tells it."""
    name = Reference.parse("acme/bot")
    assert alone.loadout(name).version == 2
    catalog.move("acme/bot", 1)
    deadline = time.monotonic() + BOUND_S + 0.5
    while alone.loadout(name).version != 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_pinned_saved_loadout_is_served_while_the_catalog_is_away(
    catalog: StandIn, alone: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bare name is not: it may mean another by now."""
    pinned = Reference.parse("acme/bot@1")
    alone.loadout(pinned)
    alone.loadout(Reference.parse("acme/bot"))
    catalog.is_away = True
    time.sleep(BOUND_S + 0.1)
    assert alone.loadout(pinned).version == 1
    with pytest.raises(CatalogUnavailable):
        alone.loadout(Reference.parse("acme/bot"))


def test_what_is_remembered_is_answered_at_once(catalog: StandIn, alone: Resolver) -> None:
    """Whoever must not wait is told so, before the catalog is asked anything."""
    with pytest.raises(WouldWait):
        at_once(lambda: alone.version(STABLE))
    assert not catalog.asked
    alone.version(STABLE)
    assert at_once(lambda: alone.version(STABLE)).version == 1
    with pytest.raises(WouldWait):
        at_once(lambda: alone.version(THIRD))
    alone.changed()
    with pytest.raises(WouldWait):
        at_once(lambda: alone.version(STABLE))
    assert catalog.asked[STABLE] == 1
