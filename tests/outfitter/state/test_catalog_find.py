"""Listings: pages, filters, orders and text, in each kind of database."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event, insert

from outfitter.errors import InvalidDetails
from outfitter.state.catalog import Catalog
from outfitter.state.models import NameRow, VersionRow
from outfitter.state.records import ORDERS, Details, Page, Query, Version
from taskvectors.errors import VectorNotFound
from tests.outfitter.state.making import digest_of, publish, ref

ALL_ORDERS = (*ORDERS, *(f"-{order}" for order in ORDERS))


@pytest.fixture
def catalog(database_url: str) -> Iterator[Catalog]:
    catalog = Catalog(database_url)
    yield catalog
    catalog.close()


def names(page: Page) -> list[str]:
    return [f"{version.name}@{version.version}" for version in page.versions]


def walk(catalog: Catalog, **query: Any) -> list[Version]:
    """Every page of a listing, one after the other."""
    found: list[Version] = []
    after = None
    while True:
        page = catalog.find(Query(**query, after=after))
        found += page.versions
        after = page.after
        if after is None:
            return found


def version_row(key: str, number: int, **other: Any) -> dict[str, Any]:
    return {
        "key": key,
        "number": number,
        "digest": digest_of((key, number)),
        "search": key,
        "is_latest": True,
        "deleted": False,
        "created": 1,
        "downloads": 0,
        "size": 1,
        "parameters": 1,
        "nnz": 1,
        "numel": 2,
        "base_name": "tiny/base",
        **other,
    }


def name_row(namespace: str, path: str, next_version: int) -> dict[str, Any]:
    return {"key": path, "namespace": namespace, "path": path, "next_version": next_version}


def fill(catalog: Catalog, num_names: int, num_versions: int) -> None:
    """Names with versions, written at once."""
    paths = [(f"ns{n % 7}", f"ns{n % 7}/n{n:05}") for n in range(num_names)]
    versions = [
        version_row(
            path,
            number,
            is_latest=number == num_versions,
            created=1000 + (n * 31 + number) % 97,
            downloads=(n * number) % 5,
            size=(n * 17 + number) % 1000,
        )
        for n, (_, path) in enumerate(paths)
        for number in range(1, num_versions + 1)
    ]
    with catalog.database.writing() as session:
        rows = [name_row(namespace, path, num_versions + 1) for namespace, path in paths]
        session.execute(insert(NameRow), rows)
        session.execute(insert(VersionRow), versions)


@pytest.mark.parametrize("every_version", [False, True])
def test_pages_are_the_whole_in_every_order(catalog: Catalog, every_version: bool) -> None:
    """With ties in what is sorted by, no version is missed and none comes twice."""
    fill(catalog, 40, 3)
    keys = {
        "name": lambda v: (v.name, v.version),
        "created": lambda v: v.created,
        "downloads": lambda v: v.downloads,
        "size": lambda v: v.facts.size,
    }
    expected = 120 if every_version else 40
    for order in ALL_ORDERS:
        found = walk(catalog, order=order, every_version=every_version, limit=7)
        assert len({(v.name, v.version) for v in found}) == len(found) == expected, order
        values = [keys[order.removeprefix("-")](version) for version in found]
        assert values == sorted(values, reverse=order.startswith("-")), order


def test_a_page_stays_put_while_others_publish(catalog: Catalog) -> None:
    """What comes and goes before the cursor moves nothing after it."""
    for name in "bdf":
        publish(catalog, name, name)
    first = catalog.find(Query(limit=2))
    publish(catalog, "a", "a")
    catalog.delete(ref("b"))
    catalog.delete(ref("d"))
    assert names(catalog.find(Query(limit=2, after=first.after))) == ["f@1"]


def test_every_filter(catalog: Catalog) -> None:
    """Alone and together; one row a name unless all versions are asked for."""
    rich = Details("MIT", ("en", "de"), labels=("json", "tools"))
    publish(catalog, "acme/json", 1, "stable", details=rich)
    publish(catalog, "acme/json", 2, base_fingerprint="e" * 64, base_name=None)
    publish(catalog, "acme0/x", 3, details=Details("Apache-2.0"))
    publish(catalog, "acme", 4, details=Details(labels=("tools",)))
    for query, expected in (
        (Query(), ["acme@1", "acme/json@2", "acme0/x@1"]),
        (Query(every_version=True), ["acme@1", "acme/json@1", "acme/json@2", "acme0/x@1"]),
        (Query(namespace="acme"), ["acme/json@2"]),
        (Query(namespace="ACME"), ["acme/json@2"]),
        (Query(namespace=""), ["acme@1"]),
        (Query(name="acme/json", every_version=True), ["acme/json@1", "acme/json@2"]),
        (Query(base="e" * 64), ["acme/json@2"]),
        (Query(base="tiny/base"), ["acme@1", "acme0/x@1"]),
        (Query(license="Apache-2.0"), ["acme0/x@1"]),
        (Query(tag="stable"), ["acme/json@1"]),
        (Query(tag="latest", every_version=True), ["acme@1", "acme/json@2", "acme0/x@1"]),
        (Query(label="tools"), ["acme@1"]),
        (Query(label="tools", every_version=True), ["acme@1", "acme/json@1"]),
        (Query(language="de", every_version=True), ["acme/json@1"]),
        (Query(language="de", label="json", tag="stable"), ["acme/json@1"]),
        (Query(language="fr", every_version=True), []),
        (Query(tag="%"), []),
    ):
        assert names(catalog.find(query)) == expected, query


def test_text_is_found_in_any_case_and_literally(catalog: Catalog) -> None:
    """Letters of every language; %, _, quotes and backslashes stand for themselves."""
    publish(catalog, "plain", 1, details=Details(description="nothing"))
    publish(catalog, "odd", 2, details=Details(description=r"100% under_score it's C:\x \"q\""))
    publish(catalog, "far", 3, details=Details(description="GRÜẞE Ελλάς ΣΊΣΥΦΟΣ", labels=("İz",)))
    for text, expected in (
        ("%", ["odd"]),
        ("_", ["odd"]),
        ("under_score", ["odd"]),
        ("underXscore", []),
        ("it's", ["odd"]),
        ("c:\\X", ["odd"]),
        ('"Q', ["odd"]),
        ("'; DROP TABLE versions; --", []),
        ("grüße", ["far"]),
        ("GRÜSSE ελλάς", ["far"]),
        ("σίσυφος", ["far"]),
        ("OD", ["odd"]),
        ("odd nothing", []),
        ("  ", ["far", "odd", "plain"]),
        ("/", []),
    ):
        found = [version.name for version in catalog.find(Query(text=text)).versions]
        assert found == expected, text


def test_pages_leave_cards_and_signatures_out(catalog: Catalog) -> None:
    """A thousand cards would be a gigabyte."""
    publish(catalog, "json", 1, details=Details(card="# Card", labels=("a",)))
    [listed] = catalog.find(Query()).versions
    assert (listed.details.card, listed.details.labels) == (None, ("a",))
    assert catalog.version(ref("json")).details.card == "# Card"


def damaged(cursor: str) -> list[str]:
    fields = json.loads(base64.urlsafe_b64decode(cursor + "=="))
    other = base64.urlsafe_b64encode(json.dumps([*fields[:-1], 7]).encode()).decode()
    deep = base64.urlsafe_b64encode(b"[" * 1500).decode()
    return [
        "",
        "x",
        "é",
        cursor[:-3],
        cursor[::-1],
        f"{cursor}AA",
        other,
        deep,
        "A" * 9999,
        "bnVsbA",
    ]


def test_a_foreign_or_damaged_cursor_is_refused(catalog: Catalog) -> None:
    """It belongs to one question; a change of any letter is noticed."""
    for word in range(3):
        publish(catalog, f"n{word}", word)
    after = catalog.find(Query(limit=1)).after
    assert after is not None
    assert names(catalog.find(Query(limit=2, after=after))) == ["n1@1", "n2@1"]
    for query in (
        *(Query(after=text) for text in damaged(after)),
        Query(after=after, order="size"),
        Query(after=after, order="-name"),
        Query(after=after, text="n"),
        Query(after=after, every_version=True),
    ):
        with pytest.raises(InvalidDetails, match="invalid cursor"):
            catalog.find(query)


@pytest.mark.parametrize(
    "query",
    [
        Query(order="digest"),
        Query(order="--name"),
        Query(limit=0),
        Query(limit=1001),
        Query(text="x" * 2000),
        Query(text="a " * 20),
        Query(label="a\x00"),
        Query(namespace="\ud800"),
    ],
)
def test_a_query_that_cannot_be_is_refused(catalog: Catalog, query: Query) -> None:
    """Before the database is asked."""
    with pytest.raises(InvalidDetails):
        catalog.find(query)


def statements_of(catalog: Catalog, query: Query) -> list[tuple[str, Any]]:
    """What a page asks of the database."""
    seen: list[tuple[str, Any]] = []
    engine = catalog.database.engine

    def see(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", see)
    try:
        catalog.find(query)
    finally:
        event.remove(engine, "before_cursor_execute", see)
    return [one for one in seen if one[0].lstrip().startswith("SELECT")]


def rows_read(catalog: Catalog, statement: str, parameters: Any) -> float:
    """Of versions, by PostgreSQL's own count; in SQLite 0, if an index gives the order."""
    with catalog.database.engine.connect() as connection:
        if catalog.database.is_sqlite:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            steps = [row[3] for row in plan]
            assert all("INDEX" in step and "TEMP B-TREE" not in step for step in steps), steps
            return 0
        explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}"
        [[[plan]]] = connection.exec_driver_sql(explain, parameters)
    return _read(plan["Plan"])


def _read(node: dict[str, Any]) -> float:
    own = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
    is_scan = node.get("Relation Name") == "versions"
    below = sum(_read(child) for child in node.get("Plans", ()))
    return below + (own * node["Actual Loops"] if is_scan else 0)


def test_a_page_of_ten_thousand_reads_few_rows(catalog: Catalog) -> None:
    """In every order, at the start and in the middle; and it asks five questions."""
    fill(catalog, 2500, 4)
    with catalog.database.engine.connect() as connection:
        connection.exec_driver_sql("ANALYZE")
        connection.commit()
    queries = [
        Query(order=order, every_version=every, limit=20, namespace=namespace)
        for order in ALL_ORDERS
        for every in (False, True)
        for namespace in ((None, "ns3") if order == "name" else (None,))
    ]
    for query in queries:
        middle = catalog.find(Query(**{**query.__dict__, "limit": 1000})).after
        # the cursor of a longer page is one of the same question
        for after in (None, middle):
            found = statements_of(catalog, Query(**{**query.__dict__, "after": after}))
            assert len(found) == 5
            page, *_parts = found
            # four versions a name on average: PostgreSQL may pass over what is not the latest
            assert rows_read(catalog, *page) <= 2 * 4 * 21, query


def test_suggestions_read_a_bounded_number_of_names(catalog: Catalog) -> None:
    """Names next to the one that was asked for are looked at, however many there are."""
    paths = [f"n{n:05}" for n in range(4000)]
    with catalog.database.writing() as session:
        session.execute(insert(NameRow), [name_row("", path, 2) for path in paths])
        session.execute(insert(VersionRow), [version_row(path, 1) for path in paths])
    with pytest.raises(VectorNotFound, match="did you mean 'n03000'"):
        catalog.version(ref("n03000x"))
