"""Loading a file through Redis, as a share of what redis-py gives for the same bytes.

    python -m tests.benchmarks.redis_tier -o tests/benchmarks/results/redis_tier.json

A Valkey of its own, over a unix socket and over TCP on the same machine. `raw` is one GET by
redis-py of a value as large as the file; `raw and sha256` hashes it, too. `load` is what a load of
the store does: the tier's size, its fill into a buffer that is there, and the sha256 of the whole
file in a second thread behind it. The sides take turns, and the shares are medians of each round's
own, since the machine may be shared. Small files are bounded by the hash: see `sha256`.
"""

import argparse
import hashlib
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import redis

from taskvectors.bench.machine import write_result
from taskvectors.store.redis_chunks import CHUNK_BYTES
from taskvectors.store.redis_tier import RedisTier
from taskvectors.store.running_digest import RunningDigest
from taskvectors.store.settings import TierSettings
from tests import services

RESULTS = Path(__file__).parent / "results" / "redis_tier.json"
SEED = 13
SIZES = {"4 MB": 4_000_000, "256 MB": 256_000_000}


def main() -> None:
    """Measure, print and write."""
    options = _parse()
    cases = []
    with tempfile.TemporaryDirectory() as folder, services.valkey(Path(folder)) as server:
        urls = {"unix socket": f"unix://{server.socket}", "TCP": server.url}
        for transport, url in urls.items():
            for label, size in SIZES.items():
                rounds = options.rounds * (8 if size < 1 << 24 else 1)
                row = {"transport": transport, "file": label, **measure(url, size, rounds)}
                cases.append(row)
                print(row, flush=True)
    result = {
        "command": f"python -m tests.benchmarks.redis_tier --rounds {options.rounds}",
        "what": "MB/s and shares, medians of alternating rounds",
        "seed": SEED,
        "chunk_bytes": CHUNK_BYTES,
        "load_average": os.getloadavg()[0],
        "cases": cases,
    }
    write_result(options.out, result)


def measure(url: str, size: int, rounds: int) -> dict[str, object]:
    """MB/s of each side, and the share of raw that the load gives."""
    data = random.Random(SEED).randbytes(size)
    digest = hashlib.sha256(data).hexdigest()
    client = redis.Redis.from_url(url)
    tier = RedisTier(TierSettings(redis_url=url, redis_timeout_s=30))
    client.set("raw", data)
    assert tier.put(digest, memoryview(data))
    buffer = memoryview(bytearray(size))

    def raw() -> bytes:
        value = client.get("raw")
        assert isinstance(value, bytes)
        return value

    def load() -> None:
        with RunningDigest(buffer) as running:
            assert tier.size(digest) == size
            tier.fill(digest, buffer, running.advance)
            assert running.finish() == digest

    sides: dict[str, Callable[[], object]] = {
        "raw": raw,
        "raw and sha256": lambda: hashlib.sha256(raw()).digest(),
        "load": load,
        "fill": lambda: tier.fill(digest, buffer, lambda _: None),
        "sha256": lambda: hashlib.sha256(buffer).digest(),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(rounds + 1):
        for side in sorted(sides, reverse=bool(turn % 2)):
            begin = time.perf_counter()
            sides[side]()
            if turn:  # the first round warms up
                seconds[side].append(time.perf_counter() - begin)
    client.flushall()
    return {
        "rounds": rounds,
        "mb_per_s": {side: round(size / statistics.median(s) / 1e6) for side, s in seconds.items()},
        "load_over_raw": _share(seconds["raw"], seconds["load"]),
        "load_over_raw_and_sha256": _share(seconds["raw and sha256"], seconds["load"]),
        "fill_over_raw": _share(seconds["raw"], seconds["fill"]),
    }


def _share(raw: list[float], ours: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(raw, ours, strict=True)), 2)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="of large files; small ones have 8×")
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
