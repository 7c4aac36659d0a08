"""The writer: what the database does not take waits, and what it can never hold is left out."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from outfitter.control.experiments.event import BadEvent, Event
from outfitter.errors import CatalogUnavailable, InvalidDetails
from outfitter.experiments.events.journal import Journal
from outfitter.experiments.events.writer import EventWriter
from tests.outfitter.experiments.making import event, looped


class Table:
    """Takes events, unless it is away; holds none of the unit "bad"."""

    def __init__(self) -> None:
        self.kept: dict[str, Event] = {}
        self.is_away = False

    def add(self, events: Sequence[Event]) -> None:
        if self.is_away:
            raise CatalogUnavailable("away")
        if any(one.unit == "bad" for one in events):
            raise InvalidDetails("cannot be held")
        self.kept |= {one.request_id: one for one in events}


def writer(journal: Journal, table: Table) -> EventWriter:
    return EventWriter(journal, None, table.add, lambda: None)


@looped
async def test_events_wait_for_a_database_that_is_away(tmp_path: Path) -> None:
    """In the journal, also that of whoever is gone."""
    table, journal = Table(), Journal(tmp_path)
    gone = Journal(tmp_path)
    gone.append(event("r0").dump())
    gone.close()
    one = writer(journal, table)
    for i in range(1, 1_200):
        journal.append(event(f"r{i}").dump())
    table.is_away = True
    assert not await one.flush()
    assert one.failures == 1
    table.is_away = False
    assert await one.flush()
    one._next_orphans = 0.0
    assert await one.flush()
    assert len(table.kept) == 1_200
    assert list(journal.orphans()) == []
    assert journal.nbytes == 0
    assert one.num_written == 1_200


@looped
async def test_all_journals_of_the_dead_wait_for_a_database_that_is_away(tmp_path: Path) -> None:
    """None of them stays locked by whoever could not write it."""
    table, journal = Table(), Journal(tmp_path)
    for i in range(3):
        gone = Journal(tmp_path)
        gone.append(event(f"r{i}").dump())
        gone.close()
    one = writer(journal, table)
    table.is_away = True
    assert not await one.flush()
    table.is_away, one._next_orphans = False, 0.0
    assert await one.flush()
    assert sorted(table.kept) == ["r0", "r1", "r2"]


@looped
async def test_what_cannot_be_held_is_left_out_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And so is what is no event; it is counted and told."""
    table, journal = Table(), Journal(tmp_path)
    one = writer(journal, table)
    for line in (event("r1").dump(), event("r2", "bad").dump(), b"{no", event("r3").dump()):
        journal.append(line)
    assert await one.flush()
    assert sorted(table.kept) == ["r1", "r3"]
    assert one.num_bad == 2
    assert caplog.text.count("is left out") == 2


def test_an_event_is_read_as_it_was_written() -> None:
    """Grades too; a newer Outfitter's fields are left out, an older one's are missing."""
    one = event("r1", "ünit", grades={"a": 1.0})
    assert Event.load(one.dump()) == one
    assert Event.load(one.dump()[:-1] + b',"more":1}') == one
    for bad in (b"", b"{}", b"[]", b"null", b'"x"', b"\xff", b"[" * 5_000):
        with pytest.raises(BadEvent):
            Event.load(bad)
