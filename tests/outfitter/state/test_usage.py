"""Usage adds up, once, whoever writes it and however often."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select, update

from outfitter.state import tenants
from outfitter.state.catalog import Catalog
from outfitter.state.models import KeyRow, UsageWriterRow
from outfitter.state.usage import FORGET_S, UsageKey, UsageQuery, UsageTable, Used

ALL = UsageQuery("2026-01-01", "2026-12-31", ("day", "tenant", "key", "model"))


@pytest.fixture
def catalog(database_url: str) -> Iterator[Catalog]:
    catalog = Catalog(database_url)
    yield catalog
    catalog.close()


@pytest.fixture
def table(catalog: Catalog) -> UsageTable:
    return UsageTable(catalog.database)


def rows(*tenants: str, day: str = "2026-03-01", requests: int = 1) -> dict[UsageKey, Used]:
    return {
        UsageKey(day, tenant, "of_1", model): Used(requests, 10, 4, 2, 1)
        for tenant in tenants
        for model in ("bot", "")
    }


def test_batches_add_up(table: UsageTable) -> None:
    """Of several writers, for the same key and day."""
    table.add("a", 1, rows("acme"))
    table.add("a", 2, rows("acme", requests=2))
    table.add("b", 1, rows("acme", "zeta"))
    found = table.find(ALL)
    sums = [(row["tenant"], row["model"], row["requests"]) for row in found]
    assert sums == [("acme", "", 4), ("acme", "bot", 4), ("zeta", "", 1), ("zeta", "bot", 1)]
    assert found[0] == {
        "day": "2026-03-01",
        "tenant": "acme",
        "key": "of_1",
        "model": "",
        "requests": 4,
        "prompt_tokens": 30,
        "cached_tokens": 12,
        "completion_tokens": 6,
        "errors": 3,
    }


def test_a_batch_counts_once(table: UsageTable) -> None:
    """Tried again under its number, later or at the same time."""
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: table.add("a", 1, rows("acme")), range(8)))
    table.add("a", 2, rows("acme"))
    table.add("a", 1, rows("acme"))
    assert [row["requests"] for row in table.find(ALL)] == [2, 2]


def test_writers_do_not_lose_each_other_s(table: UsageTable) -> None:
    """Many at once, with the same rows."""

    def write(writer: int) -> None:
        for number in range(1, 6):
            table.add(f"w{writer}", number, rows("acme", "zeta"))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    assert [row["requests"] for row in table.find(ALL)] == [20] * 4


def test_a_batch_is_added_whole_or_not_at_all(table: UsageTable) -> None:
    """What cannot be held leaves nothing behind, not even its number."""
    broken = {**rows("acme"), UsageKey("2026-03-01", "z", "k", "m"): Used(2**63)}
    with pytest.raises(Exception, match=r"catalog|large"):
        table.add("a", 1, broken)
    assert table.find(ALL) == []
    table.add("a", 1, rows("acme"))
    assert len(table.find(ALL)) == 2


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (UsageQuery("2026-03-01", "2026-03-02"), [("2026-03-01", 4), ("2026-03-02", 2)]),
        (UsageQuery("2026-03-02", "2026-03-02"), [("2026-03-02", 2)]),
        (UsageQuery("2026-03-01", "2026-03-02", ("tenant",)), [("acme", 4), ("zeta", 2)]),
        (UsageQuery("2026-03-01", "2026-03-02", ("model",), "acme"), [("", 2), ("bot", 2)]),
        (UsageQuery("2026-03-03", "2026-03-04"), []),
    ],
)
def test_sums_are_grouped(
    table: UsageTable, catalog: Catalog, query: UsageQuery, expected: list
) -> None:
    """By what is asked for, of the days and the tenant that are asked for."""
    with catalog.database.writing() as session:
        tenants.create(session, "acme")
        session.add(KeyRow(id="of_1", tenant="acme", name="", hash="", scopes="", created=1))
    table.add("a", 1, {**rows("acme", "zeta"), **rows("acme", day="2026-03-02")})
    found = table.find(query)
    assert [(row[query.group_by[0]], row["requests"]) for row in found] == expected
    assert all(row.keys() & {"day", "tenant", "key", "model"} == {*query.group_by} for row in found)


def test_writers_that_are_gone_are_forgotten(table: UsageTable, catalog: Catalog) -> None:
    """When another begins."""
    table.add("old", 1, rows("acme"))
    table.add("new", 1, rows("acme"))
    with catalog.database.changing() as session:
        gone = update(UsageWriterRow).where(UsageWriterRow.id == "old")
        session.execute(gone.values(seen=UsageWriterRow.seen - FORGET_S - 1))
    table.add("newer", 1, rows("acme"))
    with catalog.database.reading() as session:
        assert sorted(session.scalars(select(UsageWriterRow.id))) == ["new", "newer"]
