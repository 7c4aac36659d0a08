"""How the tables came to be what they are, and how a database is brought up to date."""

import time
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from outfitter.config import InvalidConfig

HEAD = "0007"
"""The revision that this code works with."""
REVISION_TABLE = "outfitter_revision"
_LOCK = 7261_8461_0427
_TRIES = 100


def upgrade(engine: Engine, shown: str) -> None:
    """Bring the tables up to HEAD; safe when several processes do so at once.

    shown: what messages call the database. Raises InvalidConfig for a database that is newer.
    """
    with engine.connect() as connection:
        if _revision(connection) == HEAD:
            return
    if engine.dialect.name == "sqlite":
        _use_write_ahead_log(engine)
    with engine.execution_options(outfitter_writes=True).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        _run(connection, shown)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(REVISION_TABLE):
        return None
    return connection.execute(text(f"SELECT version_num FROM {REVISION_TABLE}")).scalar()  # noqa: S608


def _use_write_ahead_log(engine: Engine) -> None:
    """It stays on in the file. SQLite does not wait for others here, so this does."""
    for attempt in range(_TRIES):
        connection = engine.raw_connection()
        try:
            connection.cursor().execute("PRAGMA journal_mode = WAL")
            return
        except engine.dialect.loaded_dbapi.OperationalError:
            if attempt == _TRIES - 1:
                raise
            time.sleep(0.05)
        finally:
            connection.close()


def _run(connection: Connection, shown: str) -> None:
    from alembic import command  # slow to import, and seldom needed
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    revision = _revision(connection)
    if revision is not None and revision not in known:
        raise InvalidConfig(
            f"the catalog at {shown!r} has revision {revision!r}, made by a newer Outfitter than"
            f" this one, which knows {HEAD!r}; update Outfitter or use another database"
        )
    command.upgrade(config, HEAD)
