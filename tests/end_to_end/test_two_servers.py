"""Two servers with nothing in common but Redis, a database and an origin are one store."""

import time
import urllib.error
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import services
from tests.end_to_end.conftest import Gateway, outfitter, serving
from tests.end_to_end.synthetic import Maker

pytestmark = pytest.mark.slow

SEEN_S = 1.0
"""Within this time every server answers by a change that another one acknowledged."""


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.Valkey]:
    """A Valkey of these tests' own: one of them kills it."""
    with services.valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="module")
def servers(
    base_dir: Path,
    postgres_url: str,
    valkey: services.Valkey,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Gateway, Gateway]]:
    """Two real servers, each with a store of its own."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "origin").mkdir()
    shared = {
        "OUTFITTER_DATABASE_URL": services.new_database(postgres_url),
        "OUTFITTER_REDIS_URL": valkey.url,
        "OUTFITTER_ORIGIN_URL": f"file://{folder}/origin",
    }
    args = ("--slots", "4", "--pool-bytes", "200MiB", "--max-model-len", "512")
    with (
        serving(base_dir, "first", folder, *args, **shared) as first,
        serving(base_dir, "second", folder, *args, **shared) as second,
    ):
        yield first, second


def test_a_vector_pushed_to_one_is_served_by_the_other(
    servers: tuple[Gateway, Gateway], maker: Maker
) -> None:
    """The second server loads it through Redis and gives the same log probabilities."""
    first, second = servers
    first.push(maker.sparse("shared", seed=301, size=0.06))
    answers = [server.ask({"shared": 0.8}) for server in servers]
    assert answers[0]["choices"][0]["logprobs"] == answers[1]["choices"][0]["logprobs"]
    assert answers[1] != second.ask({})
    assert _tier(second, "redis")["hits"] > 0


def test_a_moved_tag_is_seen_by_both_within_a_second(
    servers: tuple[Gateway, Gateway], maker: Maker
) -> None:
    """Whichever server moved it."""
    first, second = servers
    for seed in (311, 312):
        made = maker.sparse(f"moving{seed}", seed=seed, size=0.06)
        outfitter("push", str(made.path), "--name", "moving", "--url", first.url)
    for mover, version in ((first, 1), (second, 2), (first, 1)):
        outfitter("tag", f"moving@{version}", "stable", "--url", mover.url)
        since = time.monotonic()
        for server in servers:
            _until(partial(_serves, server, version), since + SEEN_S)


def test_redis_may_die(
    servers: tuple[Gateway, Gateway], maker: Maker, valkey: services.Valkey
) -> None:
    """With Redis dead, and back and empty, a vector that only the other server has is loaded."""
    first, _ = servers
    made = [maker.sparse(f"late{k}", seed=320 + k, size=0.06) for k in range(3)]
    first.push(made[0])
    valkey.kill()
    first.push(made[1])
    answers = [server.ask({"late0": 0.5, "late1": 0.5}) for server in servers]
    assert answers[0]["choices"] == answers[1]["choices"]
    valkey.start()
    first.push(made[2])
    answers = [server.ask({"late2": 1.0}) for server in servers]
    assert answers[0]["choices"] == answers[1]["choices"]


def test_a_deleted_vector_is_gone_from_both_within_a_second(
    servers: tuple[Gateway, Gateway], maker: Maker
) -> None:
    """Also from the one that has it resident."""
    first, second = servers
    first.push(maker.sparse("short-lived", seed=330, size=0.06))
    assert second.ask({"short-lived": 1.0})["choices"]
    outfitter("delete", "short-lived", "--url", first.url)
    since = time.monotonic()
    for server in servers:
        _until(partial(_is_gone, server), since + SEEN_S)


def _serves(server: Gateway, version: int) -> bool:
    found = server.ask({"moving@stable": 1.0})["task_vectors"]["vectors"]
    return [vector["version"] for vector in found] == [version]


def _is_gone(server: Gateway) -> bool:
    try:
        server.ask({"short-lived": 1.0})
    except urllib.error.HTTPError as error:
        return error.code == 404
    return False


def _tier(server: Gateway, name: str) -> dict[str, Any]:
    status, stats = server.get("/v1/store/stats")
    assert status == 200, stats
    engine = stats["engine"]
    assert isinstance(engine, dict)
    return dict(engine["tiers"][name])


def _until(holds: Callable[[], bool], deadline: float) -> None:
    """Wait for `holds`; it must hold for a question that is asked after the deadline."""
    while True:
        asked = time.monotonic()
        if holds():
            return
        assert asked < deadline, "not within a second"
