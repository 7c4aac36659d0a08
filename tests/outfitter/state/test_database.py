"""Databases that are away, locked, hung, read-only or misnamed: told, and in bounded time."""

import contextlib
import os
import socket
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url, text

from outfitter.config import InvalidConfig
from outfitter.errors import CatalogUnavailable
from outfitter.state.catalog import Catalog, catalog_url
from outfitter.state.database import Patience
from outfitter.waiting import WouldWait, at_once
from tests.outfitter.state.making import digest_of, publish, ref

HASTY = Patience(connect_s=2, lock_s=0.3, answer_s=1)


def plain(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://", 1)


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:secret@h/db",
        "postgresql+asyncpg://u:secret@h/db",
        "sqlite://",
        "sqlite:///:memory:",
        "postgresql://u:secret@h",
        "no url secret",
        "postgresql://u:sec@ret/secret@h/db",
        "postgresql://u@h:port/db?password=secret",
    ],
)
def test_a_url_that_cannot_be_used_is_refused(url: str) -> None:
    """With what could be, and without the password."""
    with pytest.raises(InvalidConfig) as caught:
        Catalog(url)
    assert "secret" not in str(caught.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extra that brings it."""
    monkeypatch.setitem(__import__("sys").modules, "outfitter.state.postgres", None)
    monkeypatch.delattr("outfitter.state.postgres", raising=False)  # imported before
    with pytest.raises(InvalidConfig, match=r"pip install 'outfitter\[postgres\]'"):
        Catalog("postgresql://h/db")


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_name_of_postgresql_works(postgres_database: str, scheme: str) -> None:
    """Also the one that many providers print."""
    catalog = Catalog(f"{scheme}{postgres_database[postgres_database.index(':') :]}")
    assert catalog.generation() == 0
    catalog.close()


def test_a_store_in_an_oddly_named_folder_has_a_catalog(tmp_path: Path) -> None:
    """The URL keeps what has a meaning in URLs."""
    store = tmp_path / "50% of #1? @home ü"
    store.mkdir()
    Catalog(catalog_url(store)).close()
    assert (store / "catalog.sqlite3").is_file()


def test_sqlite_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    """Write-ahead log, and synchronised fully on every connection."""
    catalog = Catalog(catalog_url(tmp_path))
    with catalog.database.changing() as session:
        pragmas = ("journal_mode", "synchronous", "foreign_keys")
        values = [session.scalar(text(f"PRAGMA {pragma}")) for pragma in pragmas]
    assert values == ["wal", 2, 1]
    catalog.close()


def test_nobody_answers() -> None:
    """A port where nothing listens, and one that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(CatalogUnavailable) as caught:
            Catalog(f"postgresql://ann:secret@127.0.0.1:{port}/db?password=secret", HASTY)
        assert "secret" not in str(caught.value)
    with pytest.raises(CatalogUnavailable, match="refused"):
        Catalog(f"postgresql://ann:secret@127.0.0.1:{port}/db", HASTY)


@pytest.mark.parametrize("content", [b"no database at all, " * 100, None])
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes | None) -> None:
    """Or a folder that is not there."""
    path = tmp_path / "catalog.sqlite3" if content else tmp_path / "none" / "catalog.sqlite3"
    if content:
        path.write_bytes(content)
    with pytest.raises(CatalogUnavailable):
        Catalog(f"sqlite:///{path}", HASTY)


@contextlib.contextmanager
def locked(url: str) -> Iterator[None]:
    """Somebody else writes, and does not end."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(str(make_url(url).database), isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.close()
        return
    with psycopg.connect(plain(url)) as other:
        other.execute("SELECT * FROM generation FOR UPDATE")
        yield


def test_a_lock_is_waited_for_in_bounded_time(database_url: str) -> None:
    """Readers go on; writers are told, and write when it is gone."""
    catalog = Catalog(database_url, HASTY)
    publish(catalog, "json", 1)
    with locked(database_url):
        assert catalog.version(ref("json")).version == 1
        catalog.generation()
        with pytest.raises(CatalogUnavailable):
            catalog.tag(ref("json"), "stable")
    assert catalog.tag(ref("json"), "stable").tags == ("latest", "stable")
    catalog.close()


def test_writers_of_one_process_wait_for_each_other_in_bounded_time(tmp_path: Path) -> None:
    """A drop that does not end holds up SQLite's other writers, but not for ever."""
    catalog = Catalog(catalog_url(tmp_path), HASTY)
    leave = threading.Event()

    def hold() -> None:
        with catalog.database.changing():
            held.set()
            leave.wait(10)

    held = threading.Event()
    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    with pytest.raises(CatalogUnavailable, match="busy"):
        catalog.claim(digest_of(1))
    leave.set()
    holder.join(10)
    catalog.claim(digest_of(1))
    catalog.close()


def test_connections_that_broke_are_replaced(postgres_database: str) -> None:
    """A server that was restarted costs no request."""
    catalog = Catalog(postgres_database, HASTY)
    publish(catalog, "json", 1)
    name = make_url(postgres_database).database
    with psycopg.connect(plain(postgres_database), autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = %s AND pid <> pg_backend_pid()",
            (name,),
        )
    assert catalog.version(ref("json")).version == 1
    catalog.close()


def sleep_in(catalog: Catalog, answer_s: float | None = None) -> None:
    """A question that takes a minute, of a server that hangs if `answer_s` is given."""
    with catalog.database.reading() as session:
        connection = session.connection().connection.driver_connection
        assert connection is not None
        if answer_s is not None:
            session.execute(text("SET statement_timeout = 0"))
            connection.answer_s = answer_s
        session.execute(text("SELECT pg_sleep(60)"))


def test_a_slow_answer_is_given_up(postgres_database: str) -> None:
    """By the server's own clock, and by ours when the server does not look at its clock."""
    catalog = Catalog(postgres_database, HASTY)
    with pytest.raises(CatalogUnavailable, match="timeout"):
        sleep_in(catalog)
    with pytest.raises(CatalogUnavailable, match="no answer"):
        sleep_in(catalog, answer_s=0.2)
    assert catalog.generation() == 0
    catalog.close()


def test_a_read_only_postgresql_is_read_and_not_written(postgres_database: str) -> None:
    """As a standby is."""
    catalog = Catalog(postgres_database, HASTY)
    publish(catalog, "json", 1)
    catalog.close()
    options = "options=-cdefault_transaction_read_only%3Don"
    separator = "&" if "?" in postgres_database else "?"
    catalog = Catalog(f"{postgres_database}{separator}{options}", HASTY)
    assert catalog.version(ref("json")).version == 1
    with pytest.raises(CatalogUnavailable, match="read-only"):
        catalog.claim(digest_of(2))
    catalog.close()


def test_a_read_only_sqlite_is_read_and_not_written(tmp_path: Path) -> None:
    """Opened so, as on a mount that is."""
    catalog = Catalog(catalog_url(tmp_path))
    publish(catalog, "json", 1)
    catalog.close()
    path = tmp_path / "catalog.sqlite3"
    read_only = Catalog(f"sqlite:///file:{path}?mode=ro&uri=true", HASTY)
    assert read_only.version(ref("json")).version == 1
    with pytest.raises(CatalogUnavailable, match="readonly"):
        read_only.claim(digest_of(2))
    read_only.close()


def test_other_peoples_tables_stay_as_they_are(database_url: str) -> None:
    """A database in use for something else is told apart; nothing is changed in it."""
    if database_url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(str(make_url(database_url).database))) as other:
            other.execute("CREATE TABLE versions (mine TEXT)")
            other.commit()
    else:
        with psycopg.connect(plain(database_url)) as connection:
            connection.execute("CREATE TABLE versions (mine TEXT)")
    for _ in range(2):
        with pytest.raises(CatalogUnavailable, match="already exists"):
            Catalog(database_url, HASTY)


def test_only_files_of_sqlite_are_made(tmp_path: Path) -> None:
    """The catalog is one file, with SQLite's own beside it while it is open."""
    Catalog(catalog_url(tmp_path)).close()
    assert os.listdir(tmp_path) == ["catalog.sqlite3"]


def test_nobody_in_a_hurry_reaches_the_database(tmp_path: Path) -> None:
    """What must be answered at once neither reads nor writes."""
    with contextlib.closing(Catalog(catalog_url(tmp_path))) as catalog:
        for ask in (catalog.generation, lambda: publish(catalog, "a", 1)):
            with pytest.raises(WouldWait):
                at_once(ask)
        assert catalog.generation() == catalog.generation()
