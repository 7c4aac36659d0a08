"""One database, SQLite or PostgreSQL: connections, transactions, and what their errors mean."""

import math
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Engine, create_engine, event, make_url, update
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    SQLAlchemyError,
)
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from outfitter import urls
from outfitter.config import InvalidConfig
from outfitter.errors import CatalogConflict, CatalogUnavailable, InvalidDetails
from outfitter.state.migrations import upgrade
from outfitter.state.models import GenerationRow
from outfitter.waiting import check_may_wait

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection

DRIVERS = {
    "sqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_WRITES = "outfitter_writes"


@dataclass(frozen=True)
class Patience:
    """Most seconds to wait: for a connection, for others' locks, for an answer."""

    connect_s: float = 5.0
    lock_s: float = 10.0
    answer_s: float = 30.0


class Database:
    """Transactions on the catalog's tables, which are made or brought up to date on opening.

    Thread-safe; several processes may open the same database. Raises InvalidConfig for a URL that
    cannot be used or tables that are newer than this code, CatalogUnavailable.
    """

    def __init__(self, url: str, patience: Patience) -> None:
        self._shown = urls.shown(url)
        self._patience = patience
        parsed = _parse(url, self._shown)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        self._turn = threading.Lock()
        with self._translated():
            engine = _sqlite(parsed, patience) if self.is_sqlite else _postgres(parsed, patience)
            try:
                upgrade(engine, self._shown)
            except BaseException:
                engine.dispose()
                raise
        self.engine = engine
        self._writer = engine.execution_options(**{_WRITES: True})
        self._reader = (
            engine
            if self.is_sqlite  # where every transaction sees one state
            else engine.execution_options(isolation_level="REPEATABLE READ")
        )

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that sees one state of all tables. Raises CatalogUnavailable."""
        with self._translated(), Session(self._reader) as session:
            yield session

    @contextmanager
    def changing(self) -> Iterator[Session]:
        """A transaction that alters no answer of `version`. Raises CatalogUnavailable."""
        with self._translated(), self._in_turn(), Session(self._writer) as session, session.begin():
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction after which answers may differ: one at a time, in all processes.

        Raises CatalogUnavailable.
        """
        with self.changing() as session:
            session.execute(update(GenerationRow).values(value=GenerationRow.value + 1))
            yield session

    def close(self) -> None:
        """Close all connections that are not in use."""
        self.engine.dispose()

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """SQLite lets writers starve; within a process they queue here instead."""
        if not self.is_sqlite:
            yield
            return
        if not self._turn.acquire(timeout=self._patience.lock_s):
            raise CatalogUnavailable(f"the catalog at {self._shown} is busy; try again")
        try:
            yield
        finally:
            self._turn.release()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """The one place where the database's errors become ours."""
        check_may_wait()
        try:
            yield
        except IntegrityError as error:
            raise CatalogConflict(
                f"the catalog changed meanwhile; try again ({_reason(error)})"
            ) from error
        except DataError as error:
            raise InvalidDetails(f"the catalog cannot hold this: {_reason(error)}") from error
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise CatalogUnavailable(
                f"the catalog at {self._shown} does not answer: {_reason(error)}; try again"
            ) from error


def _reason(error: Exception) -> str:
    """The first line of what the database said."""
    original = error.orig if isinstance(error, DBAPIError) else error
    return str(original).strip().partition("\n")[0][:200] or type(original).__name__


def _parse(url: str, shown: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    driver = DRIVERS.get(parsed.drivername) if parsed else None
    if parsed is None or driver is None:
        raise InvalidConfig(
            f"unsupported database {shown!r}; use postgresql://user:password@host:5432/database"
            " or sqlite:////folder/catalog.sqlite3"
        )
    if parsed.database in (None, "", ":memory:"):
        raise InvalidConfig(f"unsupported database {shown!r}; name a database that stays")
    if driver != "sqlite" and "@" in str(parsed.database):
        raise InvalidConfig(
            f"unsupported database {shown!r}; write '@' as %40 and '/' as %2F in a password"
        )
    return parsed.set(drivername=driver)


def _sqlite(url: URL, patience: Patience) -> Engine:
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_timeout=patience.lock_s,
        hide_parameters=True,
        connect_args={"timeout": patience.lock_s},
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: "DBAPIConnection", _record: object) -> None:
        connection.isolation_level = None  # transactions begin below
        for pragma in ("foreign_keys = ON", "synchronous = FULL"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        writes = connection.get_execution_options().get(_WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgres(url: URL, patience: Patience) -> Engine:
    try:
        from outfitter.state import postgres
    except ImportError as error:
        raise InvalidConfig(
            f"a PostgreSQL database needs its driver ({error}): pip install 'outfitter[postgres]'"
        ) from error
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_pre_ping=True,
        pool_timeout=patience.lock_s,
        max_overflow=10,
        hide_parameters=True,
        connect_args={"connect_timeout": math.ceil(patience.connect_s)},
    )

    @event.listens_for(engine, "do_connect")
    def _connect(_dialect: Any, _record: Any, args: Any, options: Any) -> Any:
        return postgres.connect(patience.lock_s, patience.answer_s, *args, **options)

    return engine


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return URL.create("sqlite", database=str(path.resolve())).render_as_string()
