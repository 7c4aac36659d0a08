"""Versions, tags and deletes, in each kind of database."""

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from outfitter.errors import CatalogConflict, InvalidDetails
from outfitter.state.bounds import MAX_CARD, MAX_LISTED
from outfitter.state.catalog import Catalog
from outfitter.state.records import Details, Query
from taskvectors.errors import InvalidReference, VectorInUse, VectorNotFound
from tests.outfitter.state.making import (
    FACTS,
    digest_of,
    loadout_of,
    publication,
    publish,
    ref,
)

DETAILS = Details("MIT", ("en", "de"), "What it’s for: „Grüße“", "---\n---\n# Card", ("b", "a"))


@pytest.fixture
def catalog(database_url: str) -> Iterator[Catalog]:
    catalog = Catalog(database_url)
    yield catalog
    catalog.close()


def test_a_version_is_what_was_published(catalog: Catalog) -> None:
    """Facts, details, tags, publisher and time come back as they were given."""
    catalog.claim(digest_of("one"))
    given = replace(publication("acme/json", "one", "stable", details=DETAILS), signature="{}")
    version = catalog.publish(given)
    assert version == catalog.version(ref("acme/json"))
    assert (version.name, version.version) == ("acme/json", 1)
    assert version.facts == replace(FACTS, digest=digest_of("one"))
    assert version.facts.density == 0.05
    assert version.details == DETAILS
    assert version.tags == ("latest", "stable")
    assert (version.publisher, version.signature, version.downloads) == ("ann", "{}", 0)
    assert not version.deleted


def test_every_pin_finds_its_version(catalog: Catalog) -> None:
    """A number, a tag, `latest`, a digest, a bare digest and a bare name."""
    publish(catalog, "json", "one", "stable")
    publish(catalog, "json", "two")
    one, two = digest_of("one"), digest_of("two")
    for text, number in (
        ("json", 2),
        ("json@latest", 2),
        ("json@1", 1),
        ("json@stable", 1),
        (f"json@sha256:{one}", 1),
        (f"sha256:{two}", 2),
    ):
        assert catalog.version(ref(text)).version == number, text
    for text in ("json@3", "json@beta", f"json@sha256:{digest_of('x')}", "acme/json"):
        with pytest.raises(VectorNotFound):
            catalog.version(ref(text))


def test_the_newest_digest_keeps_its_version(catalog: Catalog) -> None:
    """Publishing the same again adds nothing, but moves tags; an older digest is a new version."""
    publish(catalog, "json", "one", details=DETAILS)
    again = publish(catalog, "json", "one", "stable")
    assert (again.version, again.tags, again.details) == (1, ("latest", "stable"), DETAILS)
    publish(catalog, "json", "two")
    third = publish(catalog, "json", "one", "stable")
    assert (third.version, third.tags) == (3, ("latest", "stable"))
    assert catalog.version(ref("json@1")).tags == ()


def test_numbers_are_never_given_twice(catalog: Catalog) -> None:
    """Not after the newest was deleted, and not after all were."""
    publish(catalog, "json", 1)
    publish(catalog, "json", 2)
    catalog.delete(ref("json@2"))
    assert publish(catalog, "json", 2).version == 3
    catalog.delete(ref("json"))
    assert publish(catalog, "json", 2).version == 4


def test_latest_is_computed(catalog: Catalog) -> None:
    """It follows publishes and deletes, and nobody can set or take it."""
    publish(catalog, "json", 1)
    publish(catalog, "json", 2)
    publish(catalog, "json", 3)
    catalog.delete(ref("json@3"))
    assert catalog.version(ref("json@latest")).version == 2
    catalog.delete(ref("json@1"))
    assert catalog.version(ref("json")).tags == ("latest",)
    for attempt in (
        lambda: catalog.tag(ref("json@2"), "latest"),
        lambda: catalog.untag("json", "latest"),
        lambda: publish(catalog, "json", 4, "latest"),
    ):
        with pytest.raises(CatalogConflict, match="'latest' cannot be set"):
            attempt()
    assert catalog.version(ref("json")).version == 2


def test_a_tag_moves_and_goes(catalog: Catalog) -> None:
    """It points at one version at a time, and is told when it is not there."""
    publish(catalog, "json", 1, "stable")
    publish(catalog, "json", 2)
    assert catalog.tag(ref("json@2"), "stable").tags == ("latest", "stable")
    assert catalog.version(ref("json@1")).tags == ()
    assert catalog.tag(ref("json@stable"), "beta").version == 2
    catalog.untag("json", "stable")
    with pytest.raises(VectorNotFound):
        catalog.version(ref("json@stable"))
    with pytest.raises(VectorNotFound, match="has no tag 'stable'"):
        catalog.untag("json", "stable")
    with pytest.raises(VectorNotFound):
        catalog.tag(ref("json@9"), "stable")
    with pytest.raises(InvalidReference, match="invalid tag"):
        catalog.tag(ref("json"), "1.0")
    with pytest.raises(InvalidReference, match="not a name"):
        catalog.tag(ref(f"sha256:{digest_of(1)}"), "stable")


def test_tags_go_with_their_version(catalog: Catalog) -> None:
    """A delete names the tags that it took."""
    publish(catalog, "json", 1, "stable", "beta")
    publish(catalog, "json", 2, "new")
    deletion = catalog.delete(ref("json@1"))
    assert (deletion.deleted, deletion.tombstones) == ((("json", 1),), ())
    assert deletion.tags == ("beta", "stable")
    assert catalog.version(ref("json")).tags == ("latest", "new")


def test_a_name_is_deleted_whole_and_a_digest_is_not(catalog: Catalog) -> None:
    """A bare name means all versions; a bare digest names a file, which the collector drops."""
    publish(catalog, "json", 1)
    publish(catalog, "json", 2)
    with pytest.raises(VectorInUse):
        catalog.delete(ref(f"sha256:{digest_of(1)}"))
    assert catalog.delete(ref("json")).deleted == (("json", 1), ("json", 2))
    for text in ("json", "json@1", f"sha256:{digest_of(1)}"):
        with pytest.raises(VectorNotFound):
            catalog.delete(ref(text))
    assert catalog.find(Query(every_version=True)).versions == ()
    assert not catalog.is_used(digest_of(1))


def test_tombstones_stay_for_loadouts(catalog: Catalog) -> None:
    """No name or listing reaches them, digests do; they go with the last loadout."""
    publish(catalog, "json", "kept", "stable")
    publish(catalog, "json", "gone")
    catalog.save_loadout("bot", loadout_of("kept"), {"json@1": 1.0}, None)
    catalog.save_loadout("bot", loadout_of("kept", "other"), {"json@1": 1.0}, None)
    deletion = catalog.delete(ref("json"))
    assert (deletion.deleted, deletion.tombstones) == ((("json", 2),), (("json", 1),))
    for text in ("json", "json@1", "json@stable", f"json@sha256:{digest_of('kept')}"):
        with pytest.raises(VectorNotFound):
            catalog.version(ref(text))
    assert catalog.find(Query(every_version=True)).versions == ()
    assert catalog.find(Query(tag="stable")).versions == ()
    stone = catalog.version(ref(f"sha256:{digest_of('kept')}"))
    assert (stone.name, stone.version, stone.deleted, stone.tags) == ("json", 1, True, ())
    assert catalog.is_used(digest_of("kept"))
    assert publish(catalog, "json", "kept").version == 3
    assert not catalog.version(ref(f"sha256:{digest_of('kept')}")).deleted
    catalog.delete(ref("json"))
    catalog.delete_loadout("bot", 1)
    assert catalog.is_used(digest_of("kept"))
    catalog.delete_loadout("bot")
    assert not catalog.is_used(digest_of("kept"))
    with pytest.raises(VectorNotFound):
        catalog.version(ref(f"sha256:{digest_of('kept')}"))


def test_names_differ_by_more_than_case(catalog: Catalog) -> None:
    """The second spelling is refused with the first, until nothing has that any more."""
    publish(catalog, "Acme/Json", 1)
    with pytest.raises(CatalogConflict, match=re.escape("'Acme/JSON' differs from 'Acme/Json'")):
        publish(catalog, "Acme/JSON", 2)
    with pytest.raises(CatalogConflict, match="namespace 'acme' differs from 'Acme'"):
        publish(catalog, "acme/other", 2)
    assert catalog.version(ref("Acme/Json")).name == "Acme/Json"
    with pytest.raises(VectorNotFound):
        catalog.version(ref("acme/json"))
    catalog.delete(ref("Acme/Json"))
    version = publish(catalog, "acme/json", 2)
    assert (version.name, version.version) == ("acme/json", 2)


def test_suggestions_stay_in_the_namespace(catalog: Catalog) -> None:
    """Another namespace's names are nobody's business; what was deleted is no suggestion."""
    publish(catalog, "acme/json-writer", 1)
    publish(catalog, "other/json-writes", 1)
    publish(catalog, "json-writer", 1)
    publish(catalog, "acme/json-writed", 1)
    catalog.delete(ref("acme/json-writed"))
    with pytest.raises(VectorNotFound) as caught:
        catalog.version(ref("acme/json-write"))
    assert "did you mean 'acme/json-writer'?" in str(caught.value)
    with pytest.raises(VectorNotFound, match="did you mean 'json-writer'"):
        catalog.version(ref("json-writers"))
    with pytest.raises(VectorNotFound, match="has @1"):
        catalog.version(ref("json-writer@7"))


def test_details_are_replaced(catalog: Catalog) -> None:
    """All of them, also shorter lists; text finds the new ones."""
    publish(catalog, "json", 1, details=DETAILS)
    new = Details(labels=("a", "c", "b"), description="other")
    assert catalog.update(ref("json@1"), new).details == new
    assert catalog.version(ref("json")).details == new
    assert catalog.find(Query(text="other")).versions
    assert not catalog.find(Query(text="Grüße")).versions
    with pytest.raises(VectorNotFound):
        catalog.update(ref("jason"), new)


@pytest.mark.parametrize(
    "details",
    [
        Details(card="x" * (MAX_CARD + 1)),
        Details(labels=("x",) * (MAX_LISTED + 1)),
        Details(labels=("x" * 257,)),
        Details(description="a\x00b"),
        Details(license="\ud800"),
    ],
)
def test_details_have_bounds(catalog: Catalog, details: Details) -> None:
    """What some database could not hold is refused before it is asked."""
    with pytest.raises(InvalidDetails):
        publish(catalog, "json", 1, details=details)
    publish(catalog, "json", 1)
    with pytest.raises(InvalidDetails):
        catalog.update(ref("json"), details)


def test_sizes_up_to_63_bits_fit(catalog: Catalog) -> None:
    """Larger or negative ones are refused."""
    most = 2**63 - 1
    version = publish(catalog, "json", 1, size=most, numel=most, nnz=most, parameters=most)
    assert version.facts.size == version.facts.numel == most
    for number in (-1, most + 1):
        with pytest.raises(InvalidDetails, match="numel"):
            publish(catalog, "json", 2, numel=number)


@pytest.mark.parametrize("name", ["", "a/b/c", "json@1", "json@stable", "a b", "0" * 64, "é"])
def test_only_plain_names_are_published(catalog: Catalog, name: str) -> None:
    """A version or tag in the name would be a promise that nobody keeps."""
    with pytest.raises(InvalidReference):
        publish(catalog, name, 1)


def test_downloads_are_counted(catalog: Catalog) -> None:
    """One by one; of what is not there, none."""
    publish(catalog, "acme/json", 1)
    before = catalog.generation()
    for _ in range(3):
        catalog.count_download("acme/json", 1)
    catalog.count_download("acme/json", 2)
    assert catalog.version(ref("acme/json")).downloads == 3
    assert catalog.generation() == before


def test_the_generation_rises_with_every_change(catalog: Catalog) -> None:
    """And not with what changes no answer, or fails."""
    changes = (
        lambda: publish(catalog, "json", 1),
        lambda: publish(catalog, "json", 2, "beta"),
        lambda: catalog.tag(ref("json@1"), "stable"),
        lambda: catalog.untag("json", "stable"),
        lambda: catalog.update(ref("json@1"), DETAILS),
        lambda: catalog.save_loadout("bot", loadout_of(1), {}, None),
        lambda: catalog.delete(ref("json@1")),
        lambda: catalog.delete_loadout("bot"),
    )
    before = catalog.generation()
    for change in changes:
        change()
        after = catalog.generation()
        assert after > before
        before = after
    with pytest.raises(VectorNotFound):
        catalog.delete(ref("nothing"))
    catalog.claim(digest_of(3))
    assert catalog.generation() == before


def test_a_second_catalog_sees_the_same(catalog: Catalog, database_url: str) -> None:
    """What one wrote, another reads, and counts on."""
    publish(catalog, "json", 1, "stable")
    other = Catalog(database_url)
    assert other.version(ref("json@stable")) == catalog.version(ref("json"))
    assert publish(other, "json", 2).version == 2
    assert catalog.version(ref("json")).version == 2
    other.close()
