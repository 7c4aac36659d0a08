"""Memory over 10,000 requests, each with a loadout never seen before, and 1,000 promotions.

    python -m tests.benchmarks.memory --model ~/.cache/outfitter/smollm2-135m-instruct

A real gateway over a real engine in float32. Each request mixes one to four of twelve vectors with
random weights, some by layers or modules, `--streams` at a time; the pool holds about eight of the
vectors, so loads and evictions go on all the time. After each block, when nothing runs, the memory
of every process is sampled, and what the engine still keeps is counted. Then cycles of promotion
and demotion, with a request while promoted; the sha256 of all weights is taken after each hundred.
All but one in a hundred change one layer only (a cycle over all parameters takes seconds).
"""

import argparse
import asyncio
import hashlib
import http.client
import itertools
import json
import random
import re
import socket
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from taskvectors.bench.machine import write_result
from taskvectors.checkpoint import Checkpoint, fingerprint
from tests.benchmarks.growth import Sample, growth, plot, usage
from tests.end_to_end.conftest import Gateway, serving
from tests.end_to_end.synthetic import Maker

RESULTS = Path(__file__).parent / "results" / "memory.json"
SEED = 29
SLOTS = 32
POOL_BYTES = 48 << 20
PROCESSES = ("worker", "engine core", "api server", "gateway")
LABELS = {"loadouts": "requests, each a new loadout", "promotions": "promotions and demotions"}
PHASES = tuple(LABELS)
PROMOTED, EVERYTHING = "one-layer", "full0"
"""What is promoted: the seven linear layers of layer 3; the embedding, all layers and norms."""


def main() -> None:
    """Serve, ask, promote, write the result and the picture."""
    options = _parse()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        maker = _maker(options.model, folder)
        limits = ("--slots", str(SLOTS), "--pool-bytes", str(POOL_BYTES), "--max-model-len", "256")
        with serving(options.model, "base", folder, *limits, "--allow-promotions") as gateway:
            vectors = _upload(gateway, maker)
            watch = Watch(gateway)
            found = {}
            if "loadouts" in options.phases:
                found["loadouts"] = _ask_all(gateway, watch, vectors, options)
            if "promotions" in options.phases:
                found["promotions"] = _promote_all(gateway, watch, options)
    for phase in found.values():
        print(json.dumps({k: v for k, v in phase.items() if k != "samples"}, indent=1))
    _write(options, found)


def _write(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Write what was found; a phase that was not run stays as it was in the file."""
    before = json.loads(options.out.read_text()) if options.out.exists() else {}
    phases = {name: before[name] for name in PHASES if name in before} | found
    result = {
        "what": "memory of each process in bytes while idle between blocks of work",
        "command": f"python -m tests.benchmarks.memory --requests {options.requests}"
        f" --cycles {options.cycles} --block {options.block} --streams {options.streams}",
        "seed": SEED,
        "model": options.model.name,
        "dtype": "float32",
        "slots": SLOTS,
        "pool_bytes": POOL_BYTES,
        **phases,
    }
    write_result(options.out, result)
    panels = {LABELS[name]: phase["samples"] for name, phase in phases.items()}
    plot(options.out.with_suffix(".png"), panels, PROCESSES)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--cycles", type=int, default=1_000)
    parser.add_argument("--block", type=int, default=100, help="requests between two samples")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=3600, help="no cycle begins later")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    return parser.parse_args()


def _maker(model: Path, folder: Path) -> Maker:
    checkpoint = Checkpoint.open(model)
    shapes = {name: checkpoint.info(name)[0] for name in checkpoint.names}
    return Maker(shapes, fingerprint(model), folder)


def _upload(gateway: Gateway, maker: Maker) -> list[str]:
    """Twelve vectors to be mixed, whose names these are, and one that is only promoted."""
    upper, third = maker.linears(range(10, 20)), maker.linears(range(3, 4))
    made = itertools.chain(
        (maker.low_rank(f"lowrank{i}", SEED + i, 8, 0.04) for i in range(5)),
        (maker.sparse(f"sparse{i}", SEED + 10 + i, 0.03, upper) for i in range(5)),
        (maker.full(f"full{i}", SEED + 20 + i, 0.01) for i in range(2)),
        (maker.sparse(PROMOTED, SEED + 30, 0.05, third) for _ in range(1)),
    )
    names = []
    for vector in made:
        vector.deltas.clear()  # hundreds of megabytes each
        gateway.upload(vector)
        names.append(vector.name)
    return [name for name in names if name != PROMOTED]


class Watch:
    """Looks at the processes of a gateway, and at what its engine keeps, while nothing runs."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._socket = str(gateway.engine_socket())
        below = [process for process in gateway.engine_processes() if process.cmdline()]
        [api] = [process for process in below if "--uds" in process.cmdline()]

        def titled(title: str) -> psutil.Process:
            [found] = [process for process in below if process.cmdline()[0] == title]
            return found

        found = (
            titled("VLLM::Worker"),
            titled("VLLM::EngineCore"),
            api,
            psutil.Process(gateway.process.pid),
        )
        self._processes = dict(zip(PROCESSES, found, strict=True))

    def sample(self, at: int) -> Sample:
        """Memory, and what is left of the work: models, metric series, vectors, waiting."""
        memory = {name: usage(process) for name, process in self._processes.items()}
        models = json.loads(self._engine("/v1/models"))["data"]
        pool = json.loads(self._engine("/taskvectors/stats"))["pool"]
        series = {
            "engine": len(re.findall(r"^[a-z]", self._engine("/metrics"), re.MULTILINE)),
            "gateway": len(re.findall(r"^[a-z]", _text(f"{self._gateway.url}/metrics"), re.M)),
        }
        kept = {"lora_requests": len(models) - 1, "pool": pool, "metric_series": series}
        return {"at": at, **memory, "kept": kept}

    def _engine(self, path: str) -> str:
        """Ask vLLM itself on its unix socket."""
        connection = http.client.HTTPConnection("engine")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(self._socket)
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        assert answer.status == 200, text[:200]
        return text


def _text(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())


def _ask_all(
    gateway: Gateway, watch: Watch, vectors: list[str], options: argparse.Namespace
) -> dict[str, Any]:
    """Blocks of requests, a sample after each."""
    mixes = _mixes(vectors, random.Random(SEED))
    seen: set[str] = set()
    samples = [watch.sample(0)]
    started = time.perf_counter()

    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            for done in range(options.block, options.requests + 1, options.block):
                block = [next(mixes) for _ in range(options.block)]
                seen.update(hashlib.sha256(json.dumps(mix).encode()).hexdigest() for mix in block)
                await _ask_block(session, gateway, block, options.streams)
                samples.append(await asyncio.to_thread(watch.sample, done))
                if done % (10 * options.block) == 0:
                    _tell(samples[-1], started)

    asyncio.run(run())
    return {
        "requests": options.requests,
        "distinct_loadouts": len(seen),
        "seconds": round(time.perf_counter() - started, 1),
        "growth": {name: growth(samples, name, options.requests // 10) for name in PROCESSES},
        "samples": samples,
    }


def _tell(sample: Sample, started: float) -> None:
    memory = {name: f"{sample[name]['uss'] / 2**20:.1f} MiB" for name in PROCESSES}
    print(f"{time.perf_counter() - started:.0f} s: {sample['at']} {memory}", flush=True)


def _mixes(vectors: list[str], dice: random.Random) -> Iterator[list[dict[str, Any]]]:
    """Loadouts of one to four vectors, the first ones of the list more often."""
    shares = [1 / (1 + rank) ** 1.5 for rank in range(len(vectors))]
    dice.shuffle(vectors)
    while True:
        names = sorted(set(dice.choices(vectors, shares, k=dice.randint(1, 4))))
        yield [_item(name, dice) for name in names]


def _item(name: str, dice: random.Random) -> dict[str, Any]:
    item: dict[str, Any] = {"name": name, "weight": round(dice.uniform(-1, 1), 9)}
    if name.startswith("full"):
        return item
    if dice.random() < 0.2:
        item["layers"] = {f"0-{dice.randrange(29)}": round(dice.random(), 6)}
    if dice.random() < 0.2:
        item["modules"] = {"mlp.*": round(dice.random(), 6), "q_proj": 1.0}
    return item


async def _ask_block(
    session: aiohttp.ClientSession, gateway: Gateway, mixes: list[Any], streams: int
) -> None:
    todo = iter(mixes)

    async def stream() -> None:
        for mix in todo:
            await _complete(session, gateway, mix)

    await asyncio.gather(*(stream() for _ in range(streams)))


async def _complete(session: aiohttp.ClientSession, gateway: Gateway, mix: Any) -> None:
    body = {"model": gateway.model, "prompt": "A coat", "max_tokens": 1, "task_vectors": mix}
    async with session.post(f"{gateway.url}/v1/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        await answer.read()


def _promote_all(gateway: Gateway, watch: Watch, options: argparse.Namespace) -> dict[str, Any]:
    """Cycles; a sample after each ten, the checksum of all weights after each hundred."""
    dice = random.Random(SEED)
    checksums = {0: _checksum(gateway)}
    samples = [watch.sample(0)]
    seconds: dict[str, list[float]] = {PROMOTED: [], EVERYTHING: []}
    started = time.perf_counter()
    for cycle in range(1, options.cycles + 1):
        if time.perf_counter() - started > options.seconds:
            break
        name = EVERYTHING if cycle % 100 == 50 else PROMOTED
        begin = time.perf_counter()
        with _promoted(gateway, {name: round(dice.uniform(0.1, 1), 6)}):
            _ask_base(gateway)
        seconds[name].append(time.perf_counter() - begin)
        if cycle % 10 == 0:
            samples.append(watch.sample(cycle))
        if cycle % 100 == 0:
            checksums[cycle] = _checksum(gateway)
            _tell(samples[-1], started)
    done = sum(map(len, seconds.values()))
    checksums[done] = _checksum(gateway)
    return {
        "cycles": done,
        "seconds": round(time.perf_counter() - started, 1),
        "cycles_of": {name: len(times) for name, times in seconds.items()},
        "seconds_a_cycle": {
            name: round(sum(times) / len(times), 3) for name, times in seconds.items() if times
        },
        "sha256_of_all_weights": checksums,
        "is_unchanged": len(set(checksums.values())) == 1,
        "growth": {name: growth(samples, name, done // 10) for name in PROCESSES},
        "samples": samples,
    }


@contextmanager
def _promoted(gateway: Gateway, mix: dict[str, float]) -> Iterator[None]:
    """The loadout is the base while this is open. Asserts that the very bits came back."""
    promoted = _promotions(gateway, "POST", {"task_vectors": mix})
    assert promoted["sha256_promoted"] != promoted["sha256_before"]
    yield
    demoted = _promotions(gateway, "DELETE")
    assert demoted["sha256_restored"] == promoted["sha256_before"]


def _checksum(gateway: Gateway) -> str:
    return str(_promotions(gateway, "GET", query="?checksum=true")["sha256_weights"])


def _promotions(
    gateway: Gateway, method: str, body: object = None, query: str = ""
) -> dict[str, Any]:
    return dict(_send(f"{gateway.url}/v1/promotions{query}", method, body))


def _ask_base(gateway: Gateway) -> None:
    body = {"model": gateway.model, "prompt": "A coat", "max_tokens": 1}
    _send(f"{gateway.url}/v1/completions", "POST", body)


def _send(url: str, method: str, body: object) -> Any:
    request = urllib.request.Request(
        url,
        data=None if body is None else json.dumps(body).encode(),
        method=method,
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


if __name__ == "__main__":
    main()
