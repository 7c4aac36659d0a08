"""What experiments cost: the append before an answer's end, and sums over a million events.

    python -m tests.benchmarks.events -o tests/benchmarks/results/events.json

`append`: requests to one gateway in front of the stand-in engine, with the base as the model and
with an experiment, in turn, so that both see the same machine; through a journal and through
Valkey. `sums`: a million events are summed by SQLite and by PostgreSQL, just after they were
written.
"""

import argparse
import contextlib
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import text

from outfitter.config import GatewayConfig
from outfitter.control.experiments.event import Event
from outfitter.control.experiments.measures import BUILT_IN, Metric, built_in
from outfitter.state.database import Database, Patience
from outfitter.state.events import Events
from taskvectors.bench.machine import write_result
from taskvectors.store.settings import TierSettings
from tests import services
from tests.outfitter.harness import make_config, running

RESULTS = Path(__file__).parent / "results" / "events.json"
NAME, TENANT, SEED = "bench/tone", "open", 31
NUM_WRITTEN, WRITER_BATCH = 10_000, 500
HELPFUL = Metric("helpful", "feedback", "proportion", "up", covariate="latency_s")
METRICS = {
    "built-in (11)": tuple(map(built_in, BUILT_IN)),
    "primary with a covariate, and a guardrail": (HELPFUL, built_in("latency_s")),
    "all together": (
        *map(built_in, BUILT_IN),
        HELPFUL,
        Metric("ends", "grader", "proportion", "up"),
        Metric("cost_per_token", "cost", "ratio", "down", "tokens"),
    ),
}


def main() -> None:
    """Measure, print and write."""
    options = parse(sys.argv[1:])
    result: dict[str, Any] = {"command": "python -m tests.benchmarks.events", "seed": SEED}
    result |= {"load_average": os.getloadavg(), "append": {}, "sums": []}
    with tempfile.TemporaryDirectory() as folder:
        if not options.only or options.only == "append":
            for way in ("journal", "redis"):
                result["append"][way] = append(Path(folder, way), way, options.requests)
                print(way, result["append"][way])
        if not options.only or options.only == "sums":
            for url in databases(Path(folder)):
                with url as (kind, found):
                    result["sums"].append(sums(kind, found, options.events))
                    print(result["sums"][-1])
    write_result(options.out, {**result, "load_average_after": os.getloadavg()})


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options, as they are on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=600, help="of each kind, one at a time")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--only", choices=("append", "sums"))
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def append(root: Path, way: str, requests: int) -> dict[str, Any]:
    """What a request takes: with the base, with an experiment, and graded."""
    root.mkdir()
    with contextlib.ExitStack() as stack:
        tiers = TierSettings()
        if way == "redis":
            url = stack.enter_context(services.valkey(root)).url
            tiers = TierSettings(redis_url=url, redis_prefix="bench")
        config: GatewayConfig = make_config(root, tiers=tiers, access_log=False)
        gateway = stack.enter_context(running(config)).wait_ready()
        client = stack.enter_context(gateway.client)
        grader = {"name": "ends", "kind": "regex", "pattern": "three$"}
        for name, graders in ((NAME, []), ("bench/graded", [grader])):
            same = [{"key": key, "model": "base-model"} for key in "ab"]
            body = {"name": name, "variants": same, "graders": graders}
            assert client.post("/v1/experiments", json=body).status_code == 201
            assert client.post(f"/v1/experiments/{name}/start").status_code == 200
        models = {"base": "base-model", "experiment": f"exp:{NAME}", "graded": "exp:bench/graded"}
        found, draw = dict[str, Any](), random.Random(SEED)
        for shape, stream in (("whole", False), ("stream", True)):
            took: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
            for turn in range(requests + 50):
                for name in draw.sample(list(models), len(models)):
                    spent = timed(client, models[name], f"u{turn % 1000}", stream=stream)
                    if turn >= 50:
                        took[name].append(spent)
            found[shape] = figures(took)
        numbers = gateway.inner.recorder.stats()["total"]
        assert numbers["lost"] == numbers["bad"] == 0
        return {**found, "recorded": numbers["recorded"]}


def timed(client: httpx.Client, model: str, user: str, *, stream: bool) -> tuple[float, float]:
    """Milliseconds of one request to its last byte: on the clock, and of this process's CPU.

    The gateway is in this process, and so is the client; the stand-in engine is not.
    """
    body = {"model": model, "prompt": "hi", "user": user, "stream": stream}
    began, cpu = time.perf_counter(), time.process_time()
    answer = client.post("/v1/completions", json=body)
    spent = (time.perf_counter() - began) * 1e3, (time.process_time() - cpu) * 1e3
    assert answer.status_code == 200, answer.text
    return spent


def figures(took: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Of the clock and of the CPU: medians of all, and the tenth that was least disturbed.

    What an experiment adds, choosing the variant included, is the difference to the base's.
    """
    told: dict[str, Any] = {}
    for place, what in enumerate(("clock", "cpu")):
        own = told[what] = {}
        for label, share in (("median", 0.5), ("tenth", 0.1)):
            base = 0.0
            for name, spent in took.items():
                values = sorted(one[place] for one in spent)
                value = values[int(share * len(values))]
                own[f"{name}_{label}_ms"] = round(value, 4)
                if name == "base":
                    base = value
                else:
                    own[f"{name}_{label}_ratio"] = round(value / base, 4)
    return told


def databases(folder: Path) -> Iterator[contextlib.AbstractContextManager[tuple[str, str]]]:
    """Each kind, and the URL of an empty one."""

    @contextlib.contextmanager
    def sqlite() -> Iterator[tuple[str, str]]:
        yield "sqlite", f"sqlite:///{folder / 'events.sqlite3'}"

    @contextlib.contextmanager
    def postgres() -> Iterator[tuple[str, str]]:
        with services.postgres_url() as url:
            yield "postgresql", services.new_database(url)

    yield sqlite()
    yield postgres()


def sums(kind: str, url: str, number: int) -> dict[str, Any]:
    """Seconds to sum events of many units, and of few; and how many are written in a second."""
    database = Database(url, Patience(answer_s=600.0))
    try:
        events = Events(database)
        found: dict[str, Any] = {"database": kind, "events": number}
        some = [drawn(i) for i in range(NUM_WRITTEN)]
        began = time.perf_counter()
        for start in range(0, NUM_WRITTEN, WRITER_BATCH):
            events.add(some[start : start + WRITER_BATCH])
        found["written_per_s"] = round(NUM_WRITTEN / (time.perf_counter() - began))
        for units in (number // 10, number // 1000):
            experiment = f"{NAME}-{units}"
            fill(database, experiment, number, units)
            own: dict[str, Any] = {}
            for name, metrics in METRICS.items():
                own[name] = summed(events, experiment, metrics, units)
            began = time.perf_counter()
            assert sum(events.units(experiment).values()) == units
            found[f"{units} units"] = {**own, "units_s": round(time.perf_counter() - began, 3)}
        return found
    finally:
        database.close()


def fill(database: Database, experiment: str, number: int, units: int) -> None:
    """Rows as a gateway would have written them, made in the database itself.

    Each unit has one of three variants; a tenth of them has a past. Every tenth request is graded,
    on every fifth there is feedback.
    """
    numbers = f"generate_series(CAST(0 AS BIGINT), {number - 1}) AS s(i)"
    grade = "CAST('{\"ends\": 1.0}' AS JSONB)"
    if database.is_sqlite:
        numbers = (
            "(WITH RECURSIVE s(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM s"
            f" WHERE i < {number - 1}) SELECT i FROM s) AS s"
        )
        grade = "'{\"ends\": 1.0}'"
    unit, request = f"'user-' || (i % {units})", f"'{units}-' || i"
    variant = f"CASE i % {units} % 3 WHEN 0 THEN 'a' WHEN 1 THEN 'b' ELSE 'c' END"
    is_before = f"(i < {units} AND i % 10 = 0)"
    with database.changing() as session:
        for statement in (
            "INSERT INTO experiment_requests (experiment, request_id, tenant, variant, version,"
            " unit, at, is_counted, is_shadow, status, error, latency_s, prompt_tokens,"
            " completion_tokens, cached_tokens, cost, finish_reason, grades) SELECT"
            f" '{experiment}', {request}, '{TENANT}', {variant}, 1, {unit}, i, NOT {is_before},"
            f" false, 200, 0, (i * 7919 % 1000) / 1000.0, i % 500, i % 300, 0, i % 7 / 1000.0,"
            f" 'stop', CASE WHEN i % 10 = 0 THEN {grade} END FROM {numbers}",
            "INSERT INTO experiment_units (experiment, unit, variant, at)"
            f" SELECT '{experiment}', {unit}, {variant}, {units} + i FROM {numbers}"
            f" WHERE i < {units}",
            "INSERT INTO feedback (tenant, request_id, metric, id, value, at) SELECT"
            f" '{TENANT}', {request}, 'helpful', '', (i * 31 % 10 + 5) / 10, 1 FROM {numbers}"
            " WHERE i % 5 = 0",
        ):
            session.execute(text(statement))


def summed(
    events: Events, experiment: str, metrics: tuple[Metric, ...], units: int
) -> dict[str, float]:
    """Seconds of the first of three times, and their median.

    cpu_s: of this process, which is SQLite's; PostgreSQL has its own.
    """
    known = {name: built_in(name) for name in ("latency_s", "tokens")}
    seconds, cpu = [], time.process_time()
    for _ in range(3):
        began = time.perf_counter()
        told = events.moments(experiment, metrics, known)
        seconds.append(time.perf_counter() - began)
    cpu = (time.process_time() - cpu) / 3
    assert sum(one.n for one in told["latency_s"].values()) == units
    told_s = {"first_s": seconds[0], "median_s": statistics.median(seconds), "cpu_s": cpu}
    return {name: round(value, 2) for name, value in told_s.items()}


def drawn(number: int) -> Event:
    """An event of an experiment of its own."""
    draw = random.Random(number)
    return Event(
        experiment=NAME,
        request_id=f"{number:032x}",
        tenant=TENANT,
        variant=draw.choice("ab"),
        version=1,
        unit=f"user-{draw.randrange(1000)}",
        at=1.7e9 + number,
        is_counted=True,
        is_shadow=False,
        status=200,
        error=0,
        latency_s=draw.random(),
        first_token_s=None,
        inter_token_s=None,
        prompt_tokens=draw.randrange(500),
        completion_tokens=draw.randrange(300),
        cached_tokens=0,
        cost=0.0,
        finish_reason="stop",
    )


if __name__ == "__main__":
    main()
