"""Saved loadouts and what the collector leaves, in each kind of database."""

import threading
import time
from collections.abc import Iterator

import pytest

from outfitter.errors import CatalogConflict, InvalidDetails
from outfitter.state.catalog import Catalog
from outfitter.state.files import lock_file
from outfitter.state.records import Collected
from taskvectors.errors import InvalidReference, TierUnavailable, VectorNotFound
from taskvectors.store.tier import StoredFile
from tests.outfitter.state.making import digest_of, loadout_of, publication, publish, ref


@pytest.fixture
def catalog(database_url: str) -> Iterator[Catalog]:
    catalog = Catalog(database_url)
    yield catalog
    catalog.close()


class Shelf:
    """Files by digest, with their times."""

    def __init__(self, *words: object, modified: float = 0.0) -> None:
        self.files = {digest_of(word): StoredFile(digest_of(word), 10, modified) for word in words}

    def drop(self, digest: str) -> None:
        del self.files[digest]

    def collect(self, catalog: Catalog, grace_s: float = 0, dry_run: bool = False) -> Collected:
        """As if all of them had been published here long ago."""
        with catalog.database.changing() as session:
            for digest in self.files:
                lock_file(session, digest)
        return catalog.collect([*self.files.values()], self.drop, grace_s, dry_run)


def test_what_nothing_names_is_dropped(catalog: Catalog) -> None:
    """Versions, tombstones and loadouts keep their files; a dry run keeps all."""
    publish(catalog, "a", "version")
    publish(catalog, "b", "tombstone")
    catalog.save_loadout("bot", loadout_of("tombstone", "bare"), {}, None)
    publish(catalog, "c", "deleted")
    catalog.delete(ref("b"))
    catalog.delete(ref("c"))
    shelf = Shelf("version", "tombstone", "bare", "deleted", "unknown")
    gone = {digest_of("deleted"), digest_of("unknown")}
    would = shelf.collect(catalog, dry_run=True)
    assert (set(would.digests), would.nbytes, would.kept, len(shelf.files)) == (gone, 20, 3, 5)
    did = shelf.collect(catalog)
    assert (set(did.digests), did.nbytes, did.kept, len(shelf.files)) == (gone, 20, 3, 3)
    catalog.delete_loadout("bot")
    assert len(shelf.collect(catalog).digests) == 2
    assert [*shelf.files] == [digest_of("version")]


def test_a_grace_time_keeps_what_is_new(catalog: Catalog) -> None:
    """A young claim, or a young file that nobody claimed."""
    now = time.time()
    catalog.claim(digest_of("claimed"))
    shelf = Shelf("claimed", "old")
    shelf.files |= Shelf("young", modified=now).files
    for dry_run in (True, False):
        assert shelf.collect(catalog, 3600, dry_run).digests == (digest_of("old"),)
    assert len(shelf.collect(catalog).digests) == 2


def test_a_collected_file_must_be_claimed_anew(catalog: Catalog) -> None:
    """Neither a version nor a loadout may name what is no longer there."""
    catalog.claim(digest_of(1))
    assert Shelf(1).collect(catalog).digests
    with pytest.raises(CatalogConflict, match="publish it again"):
        catalog.publish(publication("json", 1))
    with pytest.raises(VectorNotFound, match="deleted meanwhile"):
        catalog.save_loadout("bot", loadout_of(1), {}, None)
    assert publish(catalog, "json", 1).version == 1


def test_a_file_that_cannot_be_dropped_is_told(catalog: Catalog) -> None:
    """It counts as collected, and the next collection tries again."""

    def fails(digest: str) -> None:
        raise TierUnavailable("away")

    shelf = Shelf(1, 2)
    publish(catalog, "json", 2)
    files = [*shelf.files.values()]
    with catalog.database.changing() as session:
        for digest in shelf.files:
            lock_file(session, digest)
    result = catalog.collect(files, fails, 0, False)
    assert result == Collected((), 0, 1, (digest_of(1),))
    with pytest.raises(CatalogConflict):
        catalog.publish(publication("json", 1))
    assert shelf.collect(catalog).digests == (digest_of(1),)


def test_a_claim_waits_for_the_collector(catalog: Catalog) -> None:
    """A publisher who claims while its file is dropped places it after that."""
    catalog.claim(digest_of(1))  # so that there is a row to lock
    order: list[str] = []
    dropping = threading.Event()

    def claims() -> None:
        dropping.wait(10)
        catalog.claim(digest_of(1))
        order.append("claimed")

    publisher = threading.Thread(target=claims)
    publisher.start()

    def drop(digest: str) -> None:
        dropping.set()
        publisher.join(0.5)  # it can only be waiting
        order.append("dropped")

    catalog.collect(Shelf(1).files.values(), drop, 0, False)
    publisher.join(10)
    assert order == ["dropped", "claimed"]
    assert catalog.publish(publication("json", 1)).version == 1


def test_many_files_are_collected_in_batches(catalog: Catalog) -> None:
    """More than one question can name."""
    publish(catalog, "json", 7)
    shelf = Shelf(*range(1100), modified=time.time())
    assert shelf.collect(catalog, 60).kept == 1100
    result = shelf.collect(catalog, 0, dry_run=True)
    assert (len(result.digests), result.kept) == (1099, 1)


def test_loadouts_have_versions(catalog: Catalog) -> None:
    """The same again keeps its number, numbers are never given twice, the newest is found."""
    request = {"json": 1.0, "b": [1, {"x": None}]}
    first = catalog.save_loadout("acme/bot", loadout_of(1), request, "ann")
    assert (first.name, first.version, first.publisher) == ("acme/bot", 1, "ann")
    assert first.canonical == loadout_of(1).canonical
    assert first.digest == loadout_of(1).digest
    assert first.request == request
    assert catalog.save_loadout("acme/bot", loadout_of(1), request, "bob") == first
    assert catalog.save_loadout("acme/bot", loadout_of(1), {"json": 1}, None).version == 2
    assert catalog.save_loadout("acme/bot", loadout_of(2), request, None).version == 3
    assert catalog.loadout("acme/bot").version == 3
    assert catalog.loadout("acme/bot", 1) == first
    catalog.delete_loadout("acme/bot", 3)
    assert catalog.loadout("acme/bot").version == 2
    catalog.delete_loadout("acme/bot")
    assert catalog.save_loadout("acme/bot", loadout_of(2), {}, None).version == 4


def test_loadouts_are_missing_or_misnamed(catalog: Catalog) -> None:
    """Each with its own error."""
    catalog.save_loadout("Bot", loadout_of(1), {}, None)
    for attempt in (
        lambda: catalog.loadout("bot"),
        lambda: catalog.loadout("Bot", 2),
        lambda: catalog.delete_loadout("other"),
        lambda: catalog.delete_loadout("Bot", 2),
    ):
        with pytest.raises(VectorNotFound, match="no saved loadout"):
            attempt()
    with pytest.raises(CatalogConflict, match="'bot' differs from 'Bot'"):
        catalog.save_loadout("bot", loadout_of(1), {}, None)
    for name in ("bot@1", "a b", ""):
        with pytest.raises(InvalidReference):
            catalog.save_loadout(name, loadout_of(1), {}, None)
    for request in ({"x": object()}, {"x": float("nan")}, {"x": "y" * 2**21}):
        with pytest.raises(InvalidDetails):
            catalog.save_loadout("Bot", loadout_of(1), request, None)


def test_loadouts_come_in_pages(catalog: Catalog) -> None:
    """The newest of each name, by name; a cursor of something else is refused."""
    for name in ("c", "a", "b"):
        catalog.save_loadout(name, loadout_of(1), {}, None)
        catalog.save_loadout(name, loadout_of(2), {}, None)
    first, after = catalog.loadouts(2)
    assert [(one.name, one.version) for one in first] == [("a", 2), ("b", 2)]
    rest, end = catalog.loadouts(2, after)
    assert ([one.name for one in rest], end) == (["c"], None)
    for limit, cursor in ((0, None), (1001, None), (1, "x"), (1, f"{after}x")):
        with pytest.raises(InvalidDetails):
            catalog.loadouts(limit, cursor)


@pytest.mark.parametrize("dry_run", [True, False])
def test_what_another_catalog_may_need_stays(catalog: Catalog, dry_run: bool) -> None:
    """A shared origin, seen by a catalog that never published the file."""
    shelf = Shelf("foreign")
    found = catalog.collect([*shelf.files.values()], shelf.drop, 0, dry_run)
    assert (found.digests, found.kept, len(shelf.files)) == ((), 1, 1)
