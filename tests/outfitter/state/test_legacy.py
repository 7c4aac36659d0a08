"""Stores from before the catalog are taken over once."""

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from outfitter.state.catalog import Catalog
from outfitter.state.legacy import import_names
from outfitter.state.records import FileFacts, Query
from taskvectors.errors import VectorNotFound
from tests.outfitter.state.making import FACTS, digest_of, publish, ref


@pytest.fixture
def catalog(database_url: str) -> Iterator[Catalog]:
    catalog = Catalog(database_url)
    yield catalog
    catalog.close()


def facts(digest: str) -> FileFacts:
    """Of every file but one."""
    if digest == digest_of("lost"):
        raise VectorNotFound("no such file")
    return replace(FACTS, digest=digest)


def write(store: Path, path: str, following: object, **words: str) -> None:
    """A name as stores wrote it; words: `v3="word"`."""
    versions = [
        {"version": int(key[1:]), "digest": digest_of(word), "created": 1700000000, "size": 7}
        for key, word in words.items()
    ]
    file = store / "names" / f"{path}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"next": following, "versions": versions}))


def listed(catalog: Catalog) -> list[tuple[str, int]]:
    found = catalog.find(Query(every_version=True)).versions
    return [(version.name, version.version) for version in found]


def test_names_keep_their_numbers(catalog: Catalog, tmp_path: Path) -> None:
    """Versions, times and the next number, also of a name that has no version left."""
    write(tmp_path, "_/json", 6, v2="two", v5="five")
    write(tmp_path, "acme/json", 4)
    assert import_names(catalog, tmp_path, facts) == 2
    version = catalog.version(ref("json"))
    assert (version.version, version.digest) == (5, digest_of("five"))
    assert (version.created, version.tags) == (1700000000, ("latest",))
    assert catalog.version(ref("json@2")).tags == ()
    assert publish(catalog, "json", "new").version == 6
    assert publish(catalog, "acme/json", "new").version == 4
    assert not (tmp_path / "names").exists()
    assert (tmp_path / "names.imported/_/json.json").is_file()


def test_once_is_enough(catalog: Catalog, tmp_path: Path) -> None:
    """Again adds nothing, also when the folder could not be renamed or others do the same."""
    assert import_names(catalog, tmp_path, facts) == 0
    write(tmp_path, "_/json", 3, v1="one", v2="two")
    with ThreadPoolExecutor(4) as threads:
        added = [*threads.map(lambda _: import_names(catalog, tmp_path, facts), range(4))]
    assert sum(added) == 2
    publish(catalog, "json", "three")
    write(tmp_path, "_/json", 3, v1="one", v2="two")
    assert import_names(catalog, tmp_path, facts) == 0
    assert catalog.version(ref("json")).version == 3
    assert (tmp_path / "names.imported.2").is_dir()


def test_what_cannot_be_read_is_left_with_a_warning(
    catalog: Catalog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each by its name; the others are taken over."""
    write(tmp_path, "_/good", 3, v1="lost", v2="kept")
    write(tmp_path, "_/Good", 9, v8="other")
    write(tmp_path, "_/zero", 0, v1="one")
    write(tmp_path, "_/huge", 10**12, v1="one")
    write(tmp_path, "_/ä", 2, v1="one")
    for name, content in (("text", "{"), ("list", "[]"), ("deep", "[" * 100_000), ("empty", "")):
        (tmp_path / f"names/_/{name}.json").write_text(content)
    (tmp_path / "names/_/link.json").symlink_to("/dev/zero")
    write(tmp_path, "_/short", 2)
    bad = {"next": 2, "versions": [{"version": 1, "digest": "../x", "created": 1, "size": 1}]}
    (tmp_path / "names/_/bad.json").write_text(json.dumps(bad))
    with caplog.at_level(logging.WARNING):
        import_names(catalog, tmp_path, facts)
    assert listed(catalog) == [("Good", 8)]  # the first by name
    for word in ("'good'", "zero", "huge", "ä", "text", "list", "deep", "empty", "link", "bad"):
        assert any(word in record.getMessage() for record in caplog.records), word
    assert publish(catalog, "short", "x").version == 2


def test_a_lost_file_costs_its_version_only(catalog: Catalog, tmp_path: Path) -> None:
    """Its number stays taken."""
    write(tmp_path, "_/json", 3, v1="kept", v2="lost")
    import_names(catalog, tmp_path, facts)
    assert listed(catalog) == [("json", 1)]
    assert publish(catalog, "json", "x").version == 3


def test_a_shared_database_keeps_its_own(
    catalog: Catalog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A version of another file under the same number is not replaced."""
    publish(catalog, "json", "ours")
    write(tmp_path, "_/json", 3, v1="theirs", v2="more")
    import_names(catalog, tmp_path, facts)
    assert catalog.version(ref("json@1")).digest == digest_of("ours")
    assert catalog.version(ref("json")).digest == digest_of("more")
    assert "json@1" in caplog.text
