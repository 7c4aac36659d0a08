"""What each key used: kept in memory, written beside the requests, told by API and command."""

import asyncio
import csv
import io
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text
from starlette.datastructures import QueryParams
from typer.testing import CliRunner, Result

from outfitter.cli import app
from outfitter.control.principal import Principal, Scope
from outfitter.errors import CatalogUnavailable, InvalidDetails
from outfitter.observers import usage as observers_usage
from outfitter.observers.usage import MAX_KEYS, OTHER, UsageLedger
from outfitter.routes.usage import as_csv, usage_query
from outfitter.state.usage import UsageKey, UsageQuery, UsageTable, Used
from tests.outfitter.harness import Running, make_config, make_vector, opened, push, running
from tests.outfitter.test_completions import error_of
from tests.outfitter.test_request_metrics import ended

TODAY = time.strftime("%Y-%m-%d", time.gmtime())


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


class Table:
    """Stands for the database: fails as it is told, and remembers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls: list[tuple[int, dict[UsageKey, Used]]] = []

    def add(self, writer: str, number: int, rows: Mapping[UsageKey, Used]) -> None:
        self.calls.append((number, dict(rows)))
        if self.errors:
            raise self.errors.pop(0)


def test_requests_are_summed_by_key_and_model() -> None:
    """A saved loadout by its name, all else as the base; refusals have neither."""
    table = Table()

    async def use() -> None:
        ledger = UsageLedger(table.add, "the-base")
        for fields in (
            {"saved_model": "acme/bot@1", "status": 200, "prompt_tokens": 3, "cached_tokens": 1},
            {"saved_model": "acme/bot@2", "status": 502, "completion_tokens": 2},
            {"model": "alias", "loadout": "sha256:1", "status": 499},
            {"model": "", "loadout": "", "status": 404},
        ):
            ledger(ended(**fields))
        assert await ledger.flush()
        assert await ledger.flush()
        assert ledger.num_pending == 0

    asyncio.run(use())
    [(number, rows)] = table.calls
    assert number == 1
    assert rows == {
        UsageKey(TODAY, "acme", "of_1", "acme/bot"): Used(2, 3, 1, 2, 1),
        UsageKey(TODAY, "acme", "of_1", "the-base"): Used(1, 0, 0, 0, 0),
        UsageKey(TODAY, "acme", "of_1", ""): Used(1, 0, 0, 0, 1),
    }


def test_a_batch_that_failed_is_tried_again_as_it_was() -> None:
    """Under the same number; what came meanwhile is the next batch."""
    table = Table(CatalogUnavailable("away"), CatalogUnavailable("away"))

    async def use() -> int:
        ledger = UsageLedger(table.add, "b")
        ledger(ended())
        assert not await ledger.flush()
        ledger(ended("zeta"))
        assert not await ledger.flush()
        assert await ledger.flush()
        assert await ledger.flush()
        return ledger.failures

    assert asyncio.run(use()) == 2
    assert [number for number, _ in table.calls] == [1, 1, 1, 2]
    first = table.calls[0][1]
    assert [rows for _, rows in table.calls[:3]] == [first] * 3
    assert [key.tenant for key in table.calls[3][1]] == ["zeta"]


def test_what_no_database_holds_does_not_block_the_rest() -> None:
    """It is lost, and said to be."""
    table = Table(InvalidDetails("too large"))

    async def use() -> None:
        ledger = UsageLedger(table.add, "b")
        ledger(ended())
        assert await ledger.flush()
        ledger(ended())
        assert await ledger.flush()

    asyncio.run(use())
    assert [number for number, _ in table.calls] == [1, 2]


def test_memory_is_bounded_while_the_database_is_away() -> None:
    """Whoever comes late is added up with others; no request is lost."""

    async def use() -> UsageLedger:
        ledger = UsageLedger(Table().add, "b")
        for number in range(MAX_KEYS + 50):
            ledger(ended(f"t{number}"))
        assert ledger.num_pending == MAX_KEYS + 1
        return ledger

    sums = asyncio.run(use())._sums
    assert sums[UsageKey(TODAY, OTHER, OTHER, OTHER)].requests == 50


def test_the_end_waits_for_the_last_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """At shutdown everything is written, a batch that is under way as well."""
    monkeypatch.setattr(observers_usage, "FLUSH_S", 0.01)
    table = Table(CatalogUnavailable("away"))

    async def use() -> None:
        ledger = UsageLedger(table.add, "b")
        task = asyncio.create_task(ledger.run())
        ledger(ended())
        while not table.calls:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        ledger(ended("zeta"))
        ledger.close()
        await task
        assert ledger.num_pending == 0

    asyncio.run(use())
    assert [number for number, _ in table.calls] == [1, 1, 2]


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A gateway that was used, and used again after a restart."""
    root = tmp_path_factory.mktemp("usage")
    for _ in range(2):
        with running(make_config(root)) as gateway, gateway.client as client:
            gateway.wait_ready()
            push(client, make_vector(root / "v"), "skill")
            for fields in ({}, {"stream": True}, {"task_vectors": {"nobody": 1}}):
                body = {"model": "base-model", "prompt": "some words", **fields}
                client.post("/v1/completions", json=body)
    with running(make_config(root)) as gateway:
        yield gateway.wait_ready()


def test_usage_outlives_the_gateway(used: Running) -> None:
    """What was used until the last moment before a restart is told."""
    with used.client as client:
        answer = client.get("/v1/usage", params={"group_by": "day,tenant,key,model"}).json()
    assert answer["object"] == "usage"
    assert answer["to"] == TODAY
    assert answer["data"] == [
        {
            "day": TODAY,
            "tenant": "open",
            "key": "",
            "model": "base-model",
            "requests": 6,
            "prompt_tokens": 8,
            "cached_tokens": 4,
            "completion_tokens": 12,
            "errors": 2,
        }
    ]


@pytest.mark.parametrize("how", ["accept", "format"])
def test_usage_is_csv_where_it_is_asked_for(used: Running, how: str) -> None:
    """With a heading for each column."""
    asked = {"headers": {"accept": "text/csv"}} if how == "accept" else {}
    query = "?group_by=model" + ("&format=csv" if how == "format" else "")
    with used.client as client:
        answer = client.get(f"/v1/usage{query}", **asked)
    assert answer.headers["content-type"].startswith("text/csv")
    [row] = csv.DictReader(io.StringIO(answer.text))
    assert (row["model"], row["requests"], row["errors"]) == ("base-model", "6", "2")


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\tx", "\r=x", "\n=x"])
def test_a_cell_is_never_a_formula(text: str) -> None:
    """A name that a spreadsheet would take for one is quoted."""
    table = as_csv(("model", "requests"), [{"model": text, "requests": 1}])
    [_, row] = csv.reader(io.StringIO(table, newline=""))
    assert row == [f"'{text}", "1"]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("from=yesterday", "from"),
        ("to=20260101", "to"),
        ("to=2026-02-30", "to"),
        ("from=2026-02-02&to=2026-02-01", "from"),
        ("from=9999-12-31", "from"),
        ("from=2026-02-02&from=2026-02-01", "from"),
        ("group_by=colour", "group_by"),
        ("group_by=day,day", "group_by"),
        ("format=xml", "format"),
        ("since=1", "since"),
    ],
)
def test_a_wrong_question_is_told_what_is_wrong(
    client: httpx.Client, query: str, param: str
) -> None:
    """A 400 that names the parameter."""
    answer = client.get(f"/v1/usage?{query}")
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param


def test_the_earliest_and_the_last_day_can_be_asked_for(client: httpx.Client) -> None:
    """The calendar has an end on both sides."""
    for query in ("to=0001-01-01", "from=0001-01-01", "to=9999-12-31"):
        assert client.get(f"/v1/usage?{query}").status_code in (200, 400), query


@pytest.mark.parametrize(
    ("scopes", "tenant"),
    [
        ({Scope.INFER}, "acme"),
        ({Scope.PUBLISH}, "acme"),
        ({Scope.OPERATE}, None),
        ({Scope.ADMIN}, None),
    ],
)
def test_a_tenant_sees_its_own(scopes: set[Scope], tenant: str | None) -> None:
    """Only an operator sees all."""
    principal = Principal("acme", "of_1", frozenset(scopes))
    assert usage_query(QueryParams(""), principal).tenant == tenant


def test_the_command_shows_and_exports(used: Running) -> None:
    """As a table, as JSON and as CSV."""
    table = invoke("usage", "--url", used.url)
    assert table.exit_code == 0, table.output
    assert "base-model" in table.stdout
    found = json.loads(invoke("usage", "--url", used.url, "--json", "--from", TODAY).stdout)
    assert found["data"][0]["requests"] == 6
    lines = invoke("usage", "--url", used.url, "--csv", "--group-by", "tenant").stdout.splitlines()
    assert lines == [
        "tenant,requests,prompt_tokens,cached_tokens,completion_tokens,errors",
        "open,6,8,4,12,2",
    ]
    wrong = invoke("usage", "--url", used.url, "--group-by", "colour")
    assert wrong.exit_code == 1
    assert "group_by must be some of" in wrong.stderr


def test_usage_waits_for_a_database_that_is_locked(tmp_path: Path) -> None:
    """Requests go on meanwhile, and it is written once the lock is gone."""
    config = make_config(tmp_path)
    if config.database_url is not None:
        pytest.skip("locks a SQLite file")
    with running(config) as gateway, gateway.client as client, opened(config) as other:
        gateway.wait_ready()
        with other.catalog.database.changing() as session:
            session.execute(text("SELECT 1"))  # takes the lock
            body = {"model": "base-model", "prompt": "p"}
            assert client.post("/v1/completions", json=body).status_code == 200
            time.sleep(observers_usage.FLUSH_S + 0.5)
            assert client.get("/v1/usage").json()["data"] == []
            assert client.post("/v1/completions", json=body).status_code == 200
    with opened(config) as vectors:
        [row] = UsageTable(vectors.catalog.database).find(UsageQuery(TODAY, TODAY))
    assert row["requests"] == 2
