"""The book: each change is a version, seen by all, and stands in the trail."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from outfitter.accounts import By
from outfitter.control.experiments.changes import edited
from outfitter.control.experiments.definition import Definition
from outfitter.control.experiments.event import Event
from outfitter.control.experiments.experiment import Experiment, Pending, Pin
from outfitter.control.experiments.status import PAUSE, START, Status, after
from outfitter.control.rights import Viewer
from outfitter.errors import ApiError, CatalogConflict, ExperimentNotFound, NotYours
from outfitter.experiments.book import AUTOMATICALLY, Book
from outfitter.state import audit
from outfitter.state.catalog import Catalog
from outfitter.state.changes import Changes
from outfitter.state.events import Events
from outfitter.state.resolver import Resolver
from outfitter.state.tenancy import TrailQuery
from outfitter.waiting import WouldWait, at_once
from taskvectors.spec import Reference
from tests.outfitter.experiments.test_definition import SMALL, WHOLE
from tests.outfitter.state.making import digest_of, loadout_of, publish

ACME, UMBRA = Viewer("acme", frozenset({"acme"})), Viewer("umbra", frozenset({"umbra"}))


class Held:
    """A catalog, and a gateway's book on it."""

    def __init__(self, url: str) -> None:
        self.catalog = Catalog(url)
        self.resolver = Resolver(self.catalog, Changes(None, "test"))
        self.book = Book(self.catalog.database, self.resolver)

    def close(self) -> None:
        self.resolver.close()
        self.catalog.close()


@pytest.fixture
def held(database_url: str) -> Iterator[Held]:
    held = Held(database_url)
    yield held
    held.close()


@pytest.fixture
def book(held: Held) -> Book:
    return held.book


def small(name: str = "acme/tone") -> Definition:
    return Definition.parse({**SMALL, "name": name})


def started(experiment: Experiment) -> Experiment:
    pin = Pin("base", loadout_of().canonical, None, "f")
    status = after(experiment.status, START)
    return replace(experiment, status=status, pins=dict.fromkeys(("a", "b"), pin))


def start(book: Book, name: str = "acme/tone") -> Experiment:
    return book.change(By(), None, name, START, started)


def test_a_version_is_kept_whole(book: Book) -> None:
    """What is written down is read again, as large as it is."""
    made = book.create(By(), None, Definition.parse(WHOLE))
    pin = Pin("acme/bot@3", loadout_of("x").canonical, {"loadout": "x"}, "f")
    pending = Pending("rollback", 12.5, {"p": 0.01}, "warm")

    def change(old: Experiment) -> Experiment:
        fields = {"pins": {"warm": pin}, "pending": pending, "forbidden": ("ship",)}
        more = {"winner": "warm", "step": 1, "started": 5, "stepped": 6}
        return replace(old, status=Status.RUNNING, **fields, **more)

    publish(book_catalog(book), "x", "x")
    changed = book.change(AUTOMATICALLY, None, "acme/tone", "test", change, figures={"z": 1})
    assert book.find(None, "acme/tone") == changed
    assert book.versions(None, "acme/tone") == (changed, made)
    assert (changed.version, changed.made.figures) == (2, {"z": 1})
    assert changed.made.tenant == "automatic"


def event_of(experiment: str) -> Event:
    """A request that counts."""
    who = {"request_id": "r", "tenant": "acme", "variant": "a", "version": 2, "unit": "u"}
    flags = {"is_counted": True, "is_shadow": False, "status": 200, "error": 0, "cost": 0.0}
    names = ("latency_s", "first_token_s", "inter_token_s")
    names += ("prompt_tokens", "completion_tokens", "cached_tokens")
    return Event(experiment=experiment, at=1.0, **who, **flags, **dict.fromkeys(names))


def book_catalog(book: Book) -> Catalog:
    catalog = Catalog.__new__(Catalog)
    catalog._database = book._database
    return catalog


def test_rights(book: Book) -> None:
    """A name is of its namespace: others do not see it, and may not make it."""
    book.create(By(), ACME, small())
    book.create(By(), None, small("tone"))
    for name in ("acme/tone", "acme/none"):
        with pytest.raises(ExperimentNotFound, match="no experiment"):
            book.registry.find(UMBRA, name)
        with pytest.raises(ExperimentNotFound):
            book.change(By(), UMBRA, name, START, started)
    with pytest.raises(NotYours):
        book.create(By(), UMBRA, small("acme/other"))
    with pytest.raises(NotYours):
        book.change(By(), UMBRA, "tone", START, started)
    assert book.registry.find(UMBRA, "tone").name == "tone"
    assert [one.name for one in book.all(UMBRA)] == ["tone"]
    assert [one.name for one in book.all(ACME)] == ["acme/tone", "tone"]


def test_names_are_taken_once(book: Book) -> None:
    """In any case of their letters."""
    book.create(By(), None, small("acme/tone"))
    with pytest.raises(CatalogConflict, match="'acme/tone' already"):
        book.create(By(), None, small("acme/Tone"))
    with pytest.raises(ExperimentNotFound):
        book.find(None, "acme/Tone")


def test_a_change_makes_a_version_and_a_line_in_the_trail(held: Held) -> None:
    """And a change that changes nothing makes neither."""
    book = held.book
    book.create(By(), None, small())
    assert start(book).version == 2
    paused = book.change(
        AUTOMATICALLY,
        None,
        "acme/tone",
        PAUSE,
        lambda old: replace(old, status=after(old.status, PAUSE)),
        figures={"p": 0.01},
    )
    assert book.change(By(), None, "acme/tone", "edit", lambda old: old) == paused
    with held.catalog.database.reading() as session:
        entries, _ = audit.changes(session, TrailQuery())
    assert [(e.action, e.subject, e.tenant) for e in entries] == [
        ("experiment.pause", "acme/tone@3", "automatic"),
        ("experiment.start", "acme/tone@2", "local"),
        ("experiment.create", "acme/tone@1", "local"),
    ]
    assert entries[0].detail == {"figures": {"p": 0.01}}


def test_an_expected_version_must_be_the_latest(book: Book) -> None:
    """Of two who decide by the same figures, one is told to look again."""
    book.create(By(), None, small())
    start(book)
    with pytest.raises(CatalogConflict, match="has version 2, not 1"):
        book.change(By(), None, "acme/tone", PAUSE, lambda old: old, expected=1)


def test_those_of_some_namespaces_are_counted(book: Book) -> None:
    """In any case; `acme-labs` is none of `acme`'s."""
    for name in ("acme/tone", "ACME/length", "acme-labs/tone", "umbra/tone", "bare"):
        book.create(By(), None, small(name))
    assert [book.count(one) for one in (None, ["Acme"], ["acme", "umbra"], [])] == [5, 2, 3, 0]


def test_many_change_at_once(database_url: str, held: Held) -> None:
    """Each change is made on what the one before made, in every process."""
    other = Held(database_url)
    held.book.create(By(), None, small())
    start(held.book)

    def step(book: Book) -> None:
        for _ in range(5):
            book.change(
                By(), None, "acme/tone", "ramp", lambda old: replace(old, step=old.step + 1)
            )

    threads = [threading.Thread(target=step, args=(one.book,)) for one in (held, other) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    now = held.book.find(None, "acme/tone")
    assert (now.step, now.version) == (20, 22)


def test_changes_are_seen_by_other_gateways(database_url: str, held: Held) -> None:
    """Their registry answers from memory, and anew once something has changed."""
    other = Held(database_url)
    held.book.create(By(), None, small())
    start(held.book)
    found = other.book.registry.find(ACME, "acme/tone")
    assert at_once(lambda: other.book.registry.find(ACME, "acme/tone")) is found
    with pytest.raises(WouldWait):
        at_once(lambda: other.book.registry.find(UMBRA, "acme/tone"))
    held.book.change(By(), None, "acme/tone", "ramp", lambda old: replace(old, step=1))
    wait = threading.Event()
    for _ in range(100):
        if other.book.registry.find(ACME, "acme/tone").step == 1:
            break
        wait.wait(0.02)
    assert other.book.registry.find(ACME, "acme/tone").version == 3
    other.close()


def test_buckets_stay_where_they_can(book: Book) -> None:
    """A change of weights moves as few as it must, and another field none."""
    book.create(By(), None, small())
    first = start(book)
    second = book.change(
        By(), None, "acme/tone", "edit", lambda old: edited(old, {"hypothesis": "It helps."}, 1)
    )
    assert second.allotment == first.allotment
    third = book.change(
        By(), None, "acme/tone", "edit", lambda old: edited(old, {"weights": {"a": 3, "b": 2}}, 1)
    )
    assert first.allotment is not None
    assert third.allotment is not None
    pairs = zip(first.allotment.buckets, third.allotment.buckets, strict=True)
    assert sum(before[0] != then[0] for before, then in pairs) == 1000


def test_files_are_kept(held: Held) -> None:
    """What a variant was resolved to stays as long as the experiment is there."""
    held.book.create(By(), None, small())
    publish(held.catalog, "warm", "w")
    pin = Pin(None, loadout_of("w").canonical, None, "f")
    held.book.change(By(), None, "acme/tone", "start", lambda old: replace(old, pins={"b": pin}))
    assert held.catalog.delete(Reference.parse("warm")).tombstones == (("warm", 1),)
    assert held.catalog.is_used(digest_of("w"))
    held.book.delete(By(), None, "acme/tone")
    assert not held.catalog.is_used(digest_of("w"))


def test_only_what_does_not_run_is_deleted(book: Book) -> None:
    """One that runs is stopped first."""
    book.create(By(), None, small())
    start(book)
    with pytest.raises(CatalogConflict, match="stop it first"):
        book.delete(By(), None, "acme/tone")
    book.change(
        By(), None, "acme/tone", "stop", lambda old: replace(old, status=after(old.status, "stop"))
    )
    events = Events(book._database)
    events.add([event_of("acme/tone"), event_of("acme/other")])
    book.delete(By(), None, "acme/tone")
    assert (events.units("acme/tone"), events.units("acme/other")) == ({}, {"a": 1})
    with pytest.raises(ExperimentNotFound):
        book.find(None, "acme/tone")
    events.add([event_of("acme/tone")])  # of a request that ended later
    book.create(By(), None, small())
    assert events.units("acme/tone") == {}


def test_what_was_measured_keeps_its_meaning() -> None:
    """Of one that was started, weights, guardrails and the like may change, and no more."""
    experiment = replace(started(Experiment(Definition.parse(WHOLE), "acme/tone")), version=2)
    for body, param in (
        ({"alpha": 0.2}, "alpha"),
        ({"control": "warm"}, "control"),
        ({"variants": WHOLE["variants"][:2]}, "variants"),
        ({"variants": [*WHOLE["variants"], {"key": "x", "model": "y"}]}, "variants"),
        ({"metrics": [{**WHOLE["metrics"][0], "min_effect": 0}, *WHOLE["metrics"][1:]]}, "metrics"),
    ):
        with pytest.raises(ApiError, match="that is running") as refused:
            edited(experiment, body, 1)
        assert (refused.value.status, refused.value.param) == (409, param)
    changed = edited(experiment, {"weights": {"warm": 3}, "guardrails": [], "ramp": None}, 1)
    assert changed.definition.shares["warm"] == 6 / 7
    assert changed.coverage == 0.8
    with pytest.raises(ApiError, match="choose control, warm") as refused:
        edited(experiment, {"weights": {"new": 3}}, 1)
    assert refused.value.param == "weights.new"
    over = replace(experiment, status=Status.STOPPED)
    assert edited(over, {"hypothesis": "No."}, 1).definition.hypothesis == "No."
    with pytest.raises(ApiError, match="that is stopped"):
        edited(over, {"weights": {"warm": 3}}, 1)


def test_a_step_whose_coverage_is_changed_begins_anew() -> None:
    """Its hours and units are those at that coverage; else it would be passed at once."""
    plain = {**WHOLE, "ramp": None}
    experiment = started(Experiment(Definition.parse(plain), "acme/tone", stepped=100))
    assert edited(experiment, {"ramp": WHOLE["ramp"]}, 900).stepped == 900
    ramped = replace(experiment, definition=Definition.parse(WHOLE), step=1)
    for ramp, stepped in (
        ([{"coverage": 0.5}, {"coverage": 1, "min_units": 9}], 100),
        ([{"coverage": 0.05}, {"coverage": 0.1}, {"coverage": 1}], 900),
        ([{"coverage": 0.05}], 900),
    ):
        assert edited(ramped, {"ramp": ramp}, 900).stepped == stepped, ramp
    assert edited(ramped, {"weights": {"warm": 3}, "coverage": 1}, 900).stepped == 100
