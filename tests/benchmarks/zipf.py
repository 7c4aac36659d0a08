"""A Zipf workload of 200 vectors over a pool that holds 16, beside one where all are resident.

    python -m tests.benchmarks.zipf --model ~/.cache/outfitter/smollm2-135m-instruct

Real servers on one store folder, under the same requests: each names one vector, drawn with
probability proportional to 1 / rank ** s. The servers take turns, a block of requests at a time,
with `--streams` requests in flight. Latencies are of whole requests of a few tokens, so a cold
load shows. Then the way from a publish to the first token, beside a request for a vector that is
resident. Vectors have 1 % of every linear weight of the model, random, sparse.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from taskvectors.bench.machine import write_result
from taskvectors.checkpoint import Checkpoint, fingerprint
from tests import services
from tests.end_to_end.conftest import Gateway, serving
from tests.end_to_end.synthetic import Maker, Synthetic

RESULTS = Path(__file__).parent / "results" / "zipf.json"
SEED = 17
TOKENS = 4
POOL = ("--pool-bytes", "8GiB", "--slots", "16", "--max-model-len", "256")
KINDS = {
    "all resident": ("--max-vectors", "256"),
    "16 resident, memory": ("--max-vectors", "16", "--tiers", "memory,disk"),
    "16 resident, disk": ("--max-vectors", "16", "--tiers", "disk"),
    "16 resident, redis": ("--max-vectors", "16", "--tiers", "redis,disk"),
}


def main() -> None:
    """Serve, ask, write the result, print it."""
    options = _parse()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        valkey = stack.enter_context(services.valkey(folder))
        maker = _maker(options.model, folder)
        servers = {
            kind: stack.enter_context(
                serving(
                    *(options.model, f"server{number}", folder, *POOL, *args),
                    *("--store", str(folder / "store")),
                    OUTFITTER_REDIS_URL=valkey.url,
                )
            )
            for number, (kind, args) in enumerate(KINDS.items())
            if kind in options.kinds
        }
        first = next(iter(servers.values()))
        for number in range(options.vectors):
            made = maker.sparse(f"v{number}", seed=SEED + number, size=0.01)
            first.upload(made)
            made.path.unlink()
        print(f"{options.vectors} vectors", flush=True)
        figures = _workload(servers, options)
        published = _publish(servers, maker, options.rounds)
    result = {
        "what": "latency of requests under a Zipf workload; seconds, and shares of the first kind",
        "command": f"python -m tests.benchmarks.zipf --vectors {options.vectors}"
        f" --requests {options.requests} --streams {options.streams} --exponent {options.exponent}",
        "seed": SEED,
        "tokens": TOKENS,
        "workload": figures,
        "publish_to_first_token": published,
    }
    write_result(options.out, result)
    print(json.dumps({"workload": figures, "publish": published}, indent=1))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--vectors", type=int, default=200)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--block", type=int, default=50)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--exponent", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    return parser.parse_args()


def _maker(model: Path, folder: Path) -> Maker:
    checkpoint = Checkpoint.open(model)
    shapes = {name: checkpoint.info(name)[0] for name in checkpoint.names}
    return Maker(shapes, fingerprint(model), folder)


def _workload(servers: dict[str, Gateway], options: argparse.Namespace) -> dict[str, Any]:
    """Latency and hit rate of every kind of server, all under the same requests."""
    ranks = np.arange(1, options.vectors + 1, dtype=float)
    weights = ranks**-options.exponent
    rng = np.random.default_rng(SEED)
    drawn = rng.choice(options.vectors, options.requests, p=weights / weights.sum())
    everything = list(range(options.vectors))
    asyncio.run(_block(servers["all resident"], everything, options.streams))
    before = {kind: _pool_loads(server) for kind, server in servers.items()}
    latencies: dict[str, list[float]] = {kind: [] for kind in servers}
    for start in range(0, options.requests, options.block):
        block = [int(vector) for vector in drawn[start : start + options.block]]
        kinds = list(servers)
        shift = start // options.block % len(kinds)
        for kind in kinds[shift:] + kinds[:shift]:
            latencies[kind] += asyncio.run(_block(servers[kind], block, options.streams))
        print(f"{start + len(block)} requests each", flush=True)
    loads = {kind: _pool_loads(server) - before[kind] for kind, server in servers.items()}
    found = {kind: _figures(times, loads[kind]) for kind, times in latencies.items()}
    base = found["all resident"]
    for figures in found.values():
        figures["share_of_all_resident"] = {
            name: figures[name] / base[name] for name in ("p50", "p95", "p99", "mean")
        }
    return found


def _figures(seconds: list[float], loads: int) -> dict[str, Any]:
    p50, p95, p99 = (float(np.percentile(seconds, q)) for q in (50, 95, 99))
    return {
        "p50": p50,
        "p95": p95,
        "p99": p99,
        "mean": statistics.fmean(seconds),
        "loads": loads,
        "pool_hit_rate": 1 - loads / len(seconds),
    }


async def _block(server: Gateway, vectors: list[int], streams: int) -> list[float]:
    """Seconds of each request, `streams` of them in flight."""
    todo = iter(vectors)
    seconds: list[float] = []

    async def stream(session: aiohttp.ClientSession) -> None:
        for vector in todo:
            begin = time.perf_counter()
            await _ask(session, server, f"v{vector}")
            seconds.append(time.perf_counter() - begin)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(stream(session) for _ in range(streams)))
    return seconds


async def _ask(session: aiohttp.ClientSession, server: Gateway, vector: str) -> None:
    body = {
        "model": server.model,
        "prompt": "A coat",
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "task_vectors": {vector: 1.0},
    }
    async with session.post(f"{server.url}/v1/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        await answer.read()


def _publish(servers: dict[str, Gateway], maker: Maker, rounds: int) -> dict[str, Any]:
    """Median seconds of an upload, of the first token after it, and of a resident vector's."""
    server = next(iter(servers.values()))
    times: dict[str, list[float]] = {"upload": [], "first token": [], "resident": []}
    for number in range(rounds):
        made = maker.sparse(f"new{number}", seed=1000 + number, size=0.01)
        begin = time.perf_counter()
        server.upload(made)
        uploaded = time.perf_counter()
        _first_token(server, made)
        served = time.perf_counter()
        _first_token(server, made)
        times["upload"].append(uploaded - begin)
        times["first token"].append(served - uploaded)
        times["resident"].append(time.perf_counter() - served)
        made.path.unlink()
    medians = {name: statistics.median(found) for name, found in times.items()}
    total = medians["upload"] + medians["first token"]
    return {**medians, "publish_to_first_token / resident": total / medians["resident"]}


def _first_token(server: Gateway, vector: Synthetic) -> None:
    body = {"model": server.model, "prompt": "A coat", "max_tokens": 1}
    request = urllib.request.Request(
        f"{server.url}/v1/completions",
        data=json.dumps({**body, "task_vectors": {vector.name: 1.0}}).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()


def _pool_loads(server: Gateway) -> int:
    status, stats = server.get("/v1/store/stats")
    assert status == 200, stats
    engine: Any = stats["engine"]
    return int(engine["pool"]["loads"])


if __name__ == "__main__":
    main()
