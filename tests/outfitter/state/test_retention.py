"""The trail is as long as the operator says, and no longer."""

import pytest
from sqlalchemy import func, select

from outfitter.control.keep import Keep
from outfitter.control.principal import LOCAL
from outfitter.state import audit, retention
from outfitter.state.database import Database, Patience
from outfitter.state.models import AuditRow, LoadoutUseRow
from outfitter.state.retention import Retention
from outfitter.state.uses import write

NOW, DAY_S = 1_800_000_000, 86_400
HOUR = NOW // 3600 * 3600


@pytest.fixture
def database(database_url: str) -> Database:
    """With a use and a change on each of a hundred days."""
    found = Database(database_url, Patience())
    with found.changing() as session:
        for day in range(100):
            hour = HOUR - day * DAY_S
            write(session, {(hour, "acme", "ofk_a", f"sha256:{k}"): (1, hour, hour) for k in "ab"})
            audit.record(session, LOCAL, "tenant.create", f"t{day}")
    with found.changing() as session:
        for row in session.scalars(select(AuditRow)):
            row.at = NOW - int(row.subject[1:]) * DAY_S
    return found


def left(database: Database) -> tuple[int, int]:
    with database.reading() as session:
        return tuple(
            session.scalar(select(func.count()).select_from(row)) or 0
            for row in (LoadoutUseRow, AuditRow)
        )


def test_by_default_uses_of_ninety_days_and_all_changes_are_kept(database: Database) -> None:
    assert Retention(database, Keep()).forget(NOW) == 2 * 9
    assert left(database) == (182, 100)


def test_changes_are_forgotten_where_that_is_said(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few at a time."""
    monkeypatch.setattr(retention, "BATCH", 7)
    assert Retention(database, Keep(None, 30 * DAY_S)).forget(NOW) == 69
    assert left(database) == (200, 31)


def test_it_looks_once_an_hour(database: Database) -> None:
    """And a server that begins looks at once."""
    now = [float(NOW)]
    forget = Retention(database, Keep(10 * DAY_S), lambda: now[0])
    forget()
    kept = left(database)
    assert kept[0] < 30
    now[0] += 3000
    forget()
    assert left(database) == kept
    now[0] += 3 * DAY_S
    forget()
    assert left(database)[0] == kept[0] - 2 * 3


def test_a_database_that_is_away_is_a_warning(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried again with the next hour."""
    forget = Retention(database, Keep())

    def away(now: float) -> int:
        raise retention.CatalogUnavailable("gone")

    monkeypatch.setattr(forget, "forget", away)
    forget()
    assert "not shortened: gone" in caplog.text
