"""Two gateways, real processes on one database: each act is made once, also when one is killed."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from outfitter.commands.serve import run
from outfitter.experiments import autopilot
from outfitter.state.events import Events
from outfitter.state.experiment_rows import LeaseRow
from outfitter.vectors import Base, Vectors
from tests.outfitter.experiments.piloted import X, regression
from tests.outfitter.harness import FINGERPRINT, free_port, make_config, opened, wait_for


def serve(root: str, port: int) -> None:
    """A gateway without an engine, whose autopilot is in a hurry."""
    autopilot.TICK_S, autopilot.LEASE_S = 0.2, 2.0
    config = make_config(Path(root), port=port, drain_seconds=1)
    base = Base(FINGERPRINT, {"w": (2, 2)})
    sys.exit(run(config, command=lambda *_: ["sleep", "600"], prepare_base=lambda _: base))


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[list[int]]:
    """Those of two gateways of one store."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    found = [free_port(), free_port()]
    processes = [context.Process(target=serve, args=(str(tmp_path), port)) for port in found]
    for process in processes:
        process.start()
    yield found
    for process in processes:
        process.kill()
        process.join()


@pytest.fixture
def vectors(tmp_path: Path) -> Iterator[Vectors]:
    with opened(make_config(tmp_path)) as vectors:
        yield vectors


def begin(url: str, name: str) -> None:
    """An experiment of the base against itself, as soon as the gateway answers."""
    mixes = [{"key": key, "model": "base-model"} for key in ("control", "warm")]
    body = {"name": name, "variants": mixes, "guardrails": [{"metric": "latency_s"}]}
    assert httpx.post(f"{url}{X}", json=body, timeout=60).status_code == 201
    assert httpx.post(f"{url}{X}/{name}/start", json={}, timeout=60).status_code == 200


def holder(vectors: Vectors) -> int:
    """The process that steers; 0 while none does."""
    with vectors.catalog.database.reading() as session:
        found = session.scalar(select(LeaseRow.holder))
        return 0 if found is None else int(found.partition("-")[0])


def actions(url: str, name: str) -> list[str]:
    answer = httpx.get(f"{url}{X}/{name}/versions", timeout=60)
    return [one["action"] for one in answer.json()["data"]]


def is_up(url: str) -> bool:
    try:
        answer = httpx.get(f"{url}/health/ready", timeout=60)
    except httpx.HTTPError:
        return False
    return "fingerprinted" not in answer.text


def test_another_gateway_goes_on_when_the_one_that_acts_is_killed(
    ports: list[int], vectors: Vectors
) -> None:
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    wait_for(lambda: all(is_up(url) for url in urls))
    events = Events(vectors.catalog.database)
    begin(urls[0], "first")
    events.add(regression("first"))
    wait_for(lambda: actions(urls[1], "first")[0] == "rollback")
    begin(urls[0], "second")
    wait_for(lambda: holder(vectors) > 0)
    os.kill(holder(vectors), signal.SIGKILL)
    events.add(regression("second"))
    left = next(url for url in urls if is_up(url))
    wait_for(lambda: actions(left, "second")[0] == "rollback")
    for name in ("first", "second"):
        assert actions(left, name) == ["rollback", "start", "create"]
