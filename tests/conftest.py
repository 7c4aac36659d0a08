"""What all tests share: servers of state, and examples that are drawn the same in every run.

`--hypothesis-profile explore` looks for new examples.
"""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests import services

# Each library would start a thread for every core, and with small arrays these spend nearly all
# their time waiting for each other: singular values took 27 times the processor time. vLLM would
# tie each engine to a core of its own, the same for all engines. Before numpy and torch are there.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

settings.register_profile("explore", deadline=None, print_blob=True)
settings.register_profile("repeat", deadline=None, derandomize=True)
settings.load_profile("repeat")


ENGINE = "tests/end_to_end/"
"""Tests with the real engine: the longest, so they come first."""
APART = tuple(ENGINE + name for name in ("test_architectures", "test_bench", "test_production"))
"""Those that start engines of their own. One process runs them; another runs the rest, which share
one engine."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first."""
    items.sort(key=lambda item: not item.nodeid.startswith(ENGINE))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """For `pytest -n 3 --no-loadscope-reorder`: a process is given file by file."""
    from xdist.scheduler import LoadScopeScheduling

    class ByServer(LoadScopeScheduling):
        """Those of the engine are as two files."""

        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith(APART):
                return f"{ENGINE}apart"
            file = nodeid.partition("::")[0]
            return ENGINE if file.startswith(ENGINE) else file

    return ByServer(config, log)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Valkey server that all tests share; use `redis_prefix` for keys."""
    with services.redis_url(tmp_path_factory.mktemp("valkey")) as url:
        yield url


@pytest.fixture
def redis_prefix() -> str:
    """A prefix for keys that no other test has."""
    return f"t:{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server that all tests share."""
    with services.postgres_url() as url:
        yield url


@pytest.fixture
def postgres_database(postgres_url: str) -> str:
    """The URL of an empty PostgreSQL database of this test's own."""
    return services.new_database(postgres_url)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of this test's own, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'catalog.sqlite3'}"
    return str(request.getfixturevalue("postgres_database"))


@pytest.fixture(autouse=True)
def _own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a test runs as a command finds state of its own on the given servers."""
    for name, value in services.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
