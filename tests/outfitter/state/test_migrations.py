"""How a database is made and brought up to date."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text

from outfitter.config import InvalidConfig
from outfitter.state import migrations
from outfitter.state.catalog import Catalog
from outfitter.state.models import Base
from outfitter.state.records import Terms
from taskvectors.spec import Loadout, LoadoutItem


def test_models_and_migrations_agree(database_url: str) -> None:
    """A database that was brought up to date has exactly the tables of the models."""
    Catalog(database_url).close()
    engine = create_engine(database_url)
    with engine.connect() as connection:
        options = {"version_table": migrations.REVISION_TABLE, "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []
        assert set(inspect(connection).get_table_names()) == {
            *Base.metadata.tables,
            migrations.REVISION_TABLE,
        }
    engine.dispose()


def test_models_and_migrations_agree_on_conditions(database_url: str) -> None:
    """Conditions of indexes and collations too, which comparisons of metadata leave out."""
    Catalog(database_url).close()
    engine = create_engine(database_url)
    if engine.dialect.name == "sqlite":
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'index' ORDER BY name"
    else:
        query = (
            "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' UNION SELECT"
            " table_name || '.' || column_name, data_type || coalesce(collation_name, '')"
            " FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1"
        )
    with engine.begin() as connection:
        migrated = [tuple(row) for row in connection.execute(text(query))]
        Base.metadata.drop_all(connection)
        Base.metadata.create_all(connection)
        assert [tuple(row) for row in connection.execute(text(query))] == migrated
    engine.dispose()


def test_the_head_is_the_last_script() -> None:
    """What opening compares with, without loading the scripts."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_heads() == [migrations.HEAD]


def test_many_open_a_new_database_at_once(database_url: str) -> None:
    """One of them makes the tables, and none fails."""
    with ThreadPoolExecutor(8) as threads:
        catalogs = [*threads.map(lambda _: Catalog(database_url), range(8))]
    assert [catalog.generation() for catalog in catalogs] == [0] * 8
    for catalog in catalogs:
        catalog.close()


def test_a_newer_database_is_refused(database_url: str) -> None:
    """And left as it is."""
    Catalog(database_url).close()
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {migrations.REVISION_TABLE} SET version_num = '9999'"))
    for _ in range(2):
        with pytest.raises(InvalidConfig, match="'9999', made by a newer Outfitter"):
            Catalog(database_url)
    engine.dispose()


@pytest.mark.parametrize("before", ["0001", "0002"])
def test_a_loadout_that_was_saved_before_it_was_a_model_is_one(
    database_url: str, before: str
) -> None:
    """It takes no vectors of requests, and nobody knows its base nor its vectors' names."""
    loadout = Loadout.build([LoadoutItem("a" * 64, 0.5)])
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    engine = create_engine(database_url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, before)
        connection.execute(text("INSERT INTO loadout_names VALUES ('acme/bot', 'acme/bot', 2)"))
        columns = "id, key, number, is_latest, digest, canonical, request, created, publisher"
        row = "1, 'acme/bot', 1, true, :digest, :canonical, '{}', 5, 'ann'"
        insert = text(f"INSERT INTO loadouts ({columns}) VALUES ({row})")
        values = {"digest": loadout.digest, "canonical": loadout.canonical}
        connection.execute(insert, values)
    engine.dispose()
    catalog = Catalog(database_url)
    saved = catalog.loadout("acme/bot")
    assert (saved.loadout, saved.terms, saved.publisher) == (loadout, Terms(), "ann")
    catalog.close()
