"""Gateways that are killed in the middle of traffic: what was answered whole is counted once.

Two real processes, forked from one that has imported everything, share one database and one engine
each; they are ended by SIGKILL at random moments, one while the other goes on, or both.
"""

import contextlib
import functools
import json
import multiprocessing
import os
import random
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from outfitter.commands.serve import run
from outfitter.config import GatewayConfig
from outfitter.control.experiments.measures import built_in
from outfitter.experiments.events import streams
from outfitter.state.events import Events
from outfitter.vectors import Base
from taskvectors.store.settings import TierSettings
from tests import services
from tests.outfitter.harness import (
    FINGERPRINT,
    SHAPES,
    fake_command,
    free_port,
    make_config,
    opened,
    wait_for,
)

NAME = "lab/killed"
EXPERIMENT = {
    "name": NAME,
    "variants": [{"key": "a", "model": "base-model"}, {"key": "b", "model": "base-model"}],
}
PATH = "/v1/completions"
NUM_CLIENTS, NUM_UNITS = 6, 40
CLAIM_AFTER_S = 1.5
"""Of a stream here, so that nobody waits for long; a batch is written in much less."""


@dataclass(frozen=True)
class State:
    """What both gateways share."""

    root: str
    redis_url: str | None
    database_url: str | None

    def config(self, port: int) -> GatewayConfig:
        tiers = TierSettings(redis_url=self.redis_url, redis_prefix="killed")
        more = {"tiers": tiers, "database_url": self.database_url, "access_log": False}
        return make_config(Path(self.root), port=port, drain_seconds=1, **more)


def serve(state: State, port: int) -> None:
    """One gateway, in a process of its own."""
    streams.Stream.__init__ = functools.partialmethod(  # type: ignore[method-assign]
        streams.Stream.__init__, claim_after_s=CLAIM_AFTER_S
    )
    base = Base(FINGERPRINT, SHAPES)
    sys.exit(run(state.config(port), command=fake_command(), prepare_base=lambda _: base))


class Server:
    """A gateway that is killed and started again."""

    def __init__(self, state: State) -> None:
        self.state, self.port = state, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._process: multiprocessing.process.BaseProcess | None = None

    def start(self) -> None:
        if self._process is not None:
            return
        self._process = self._context.Process(target=serve, args=(self.state, self.port))
        self._process.start()

    def wait_ready(self) -> None:
        wait_for(self._answers, 120)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.is_alive()
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/health/ready").status_code == 200
        return False


@dataclass
class Book:
    """What clients asked, and what they were answered whole; by request id, whose it was."""

    asked: dict[str, str] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)


def ask_on(url: str, book: Book, seed: int, stop: threading.Event) -> None:
    """Ask, whole and streamed in turn, until told to stop, or the gateway is gone."""
    draw = random.Random(seed)
    with (
        contextlib.suppress(httpx.TransportError),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        while not stop.is_set():
            request_id, unit = uuid.uuid4().hex, f"u{draw.randrange(NUM_UNITS)}"
            is_stream = draw.random() < 0.5
            book.asked[request_id] = unit
            body = {"model": f"exp:{NAME}", "prompt": "hi", "user": unit, "stream": is_stream}
            headers = {"x-request-id": request_id}
            with client.stream("POST", PATH, json=body, headers=headers) as answer:
                assert answer.status_code == 200, answer.read()
                if is_stream:
                    for line in answer.iter_lines():
                        if line == "data: [DONE]":  # that was all, whatever comes after
                            book.whole[request_id] = unit
                else:
                    answer.read()
                    assert answer.json()["choices"]
                    book.whole[request_id] = unit


@contextlib.contextmanager
def traffic(servers: list[Server], book: Book, draw: random.Random) -> Iterator[None]:
    stop = threading.Event()
    clients = [
        threading.Thread(target=ask_on, args=(one.url, book, draw.getrandbits(32), stop))
        for one in servers
        for _ in range(NUM_CLIENTS)
    ]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        stop.set()
        for client in clients:
            client.join()


def check(events: Events, book: Book) -> dict[str, int]:
    """Every request that was answered whole is there once, and nothing that nobody asked.

    Waits until that is so: what was recorded, and not answered whole, may still come.
    """
    kept: dict[str, str] = {}
    sums: list[float] = []

    def caught_up() -> bool:
        rows = [(row["request_id"], row["unit"]) for row in events.rows(NAME)]
        requests = events.moments(NAME, [built_in("requests")], {})["requests"].values()
        kept.clear()
        kept.update(rows)
        sums[:] = [sum(one.x for one in requests), sum(one.n for one in requests)]
        is_once = sums == [len(kept), len(set(kept.values()))] and len(kept) == len(rows)
        return is_once and book.whole.keys() <= kept.keys()

    with contextlib.suppress(AssertionError):
        wait_for(caught_up, 60)
    assert book.whole.keys() - kept.keys() == set()
    assert kept.items() <= book.asked.items()
    assert sums == [len(kept), len(set(kept.values()))]
    return {"asked": len(book.asked), "whole": len(book.whole), "counted": len(kept)}


def killing(servers: list[Server], doomed: list[Server], book: Book, draw: random.Random) -> None:
    """Traffic on all, in the middle of which some are killed, one after another."""
    with traffic(servers, book, draw):
        for one in doomed:
            enough = len(book.whole) + draw.randrange(5, 60)
            wait_for(lambda enough=enough: len(book.whole) >= enough, 60)
            one.kill()
        time.sleep(0.2)


def kill_often(state: State, kills: int, seed: int) -> dict[str, int]:
    """Kill both and start one again, or kill one while the other goes on, in turn."""
    print(f"seed {seed}")
    draw, book, killed = random.Random(seed), Book(), 0
    servers = [Server(state), Server(state)]
    try:
        start(servers)
        with httpx.Client(base_url=servers[0].url, timeout=60) as client:
            assert client.post("/v1/experiments", json=EXPERIMENT).status_code == 201
            assert client.post(f"/v1/experiments/{NAME}/start").status_code == 200
        time.sleep(1.0)  # until both know
        with opened(state.config(1)) as vectors:
            events = Events(vectors.catalog.database)
            while True:
                doomed = servers if killed % 3 == 0 else [draw.choice(servers)]
                killing(servers, doomed, book, draw)
                killed += len(doomed)
                start(servers[:1])
                told = check(events, book)
                if killed >= kills:
                    return {"kills": killed, **told}
                start(servers)
    finally:
        for one in servers:
            one.kill()


def start(servers: list[Server]) -> None:
    """Those that do not run."""
    for one in servers:
        one.start()
    for one in servers:
        one.wait_ready()


@pytest.fixture(params=["journal", pytest.param("redis", marks=pytest.mark.slow)])
def redis(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str | None]:
    if request.param == "journal":
        yield None
        return
    with services.valkey(tmp_path) as valkey:
        yield valkey.url


def test_what_was_answered_whole_is_counted_once_though_gateways_are_killed(
    redis: str | None, tmp_path: Path
) -> None:
    """One is killed, then the other, and the first is started again."""
    told = kill_often(State(str(tmp_path), redis, None), 2, 27)
    print(told)
    assert told["whole"] >= 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_same_through_thirty_kills(
    redis: str | None, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Drawn anew in each run."""
    url = request.getfixturevalue("postgres_database") if kind == "postgresql" else None
    told = kill_often(State(str(tmp_path), redis, url), 30, int.from_bytes(os.urandom(4)))
    way = "journal" if redis is None else "redis"
    print(json.dumps({"database": kind, "way": way, **told}))
    if folder := os.environ.get("OUTFITTER_RESULTS"):
        path = Path(folder) / f"events_killed_{kind}_{way}.json"
        path.write_text(json.dumps({"database": kind, "way": way, **told}, indent=1) + "\n")
