"""Loads of one file from each tier of the store, beside what the raw tier gives.

    python -m tests.benchmarks.tiers

Ours is `TieredFiles.load`: it finds the file, reads it, and checks its sha256. Raw is the same
bytes by the plainest means: `readinto` of an open file, one GET of redis-py from a real Valkey, a
copy in memory; with and without a sha256 behind it. All take turns in one process, and each round
starts with another one, so shares can be compared where seconds cannot.
"""

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import redis

from taskvectors.bench.machine import write_result
from taskvectors.store import DirectoryStore
from taskvectors.store.settings import DISK, MEMORY, ORIGIN, REDIS, TierSettings
from taskvectors.store.tiered import TieredFiles
from tests.services import Valkey, valkey

RESULTS = Path(__file__).parent / "results" / "tiers.json"
SEED = 11
SIZES_MIB = (4, 64, 256)

Read = Callable[[], object]


def main() -> None:
    """Measure every size, write the result, print the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES_MIB, metavar="MIB")
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, valkey(Path(name)) as server:
        sizes = {
            f"{size} MiB": measure(Path(name) / str(size), size << 20, server, options.rounds)
            for size in options.sizes
        }
    result = {
        "what": "a load from each tier; median seconds of all rounds, and shares of raw reads",
        "command": f"python -m tests.benchmarks.tiers --rounds {options.rounds}",
        "seed": SEED,
        "sizes": sizes,
    }
    write_result(options.out, result)
    for size, figures in sizes.items():
        print(
            size, *(f"{name} {share:.2f}" for name, share in figures["shares"].items()), sep="\n  "
        )


def measure(folder: Path, nbytes: int, server: Valkey, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds by way of reading, and what ours reaches of the raw rates."""
    data = np.random.default_rng(SEED).bytes(nbytes)
    digest = hashlib.sha256(data).hexdigest()
    path = _store(folder, data, digest)
    (folder / "origin").mkdir()
    buffer, copy = memoryview(bytearray(data)), memoryview(bytearray(nbytes))
    tcp, unix = server.client, redis.Redis(unix_socket_path=str(server.socket))
    tcp.set("raw", data)
    settings = {
        MEMORY: TierSettings((MEMORY, DISK), memory_bytes=2 * nbytes),
        "redis, tcp": TierSettings((REDIS,), redis_url=server.url, redis_timeout_s=30),
        "redis, unix": TierSettings((REDIS,), redis_url=f"unix://{server.socket}"),
        DISK: TierSettings((DISK,)),
        ORIGIN: TierSettings((ORIGIN,), origin_url=f"file://{folder}/origin"),
    }
    opened = {
        name: TieredFiles(folder, each, with_memory=name == MEMORY)
        for name, each in settings.items()
    }
    _fill(opened, digest, data)

    def from_memory() -> None:
        copy[:] = opened[MEMORY].load(digest)  # both are memoryviews: one copy, no other

    reads: dict[str, Read] = {
        "raw copy": lambda: copy.__setitem__(slice(None), buffer),
        "raw file": path.read_bytes,
        "raw file, sha256": lambda: hashlib.sha256(path.read_bytes()),
        "raw file, not cached, sha256": lambda: (_evict(path), hashlib.sha256(path.read_bytes())),
        "raw redis, tcp": lambda: tcp.get("raw"),
        "raw redis, unix": lambda: unix.get("raw"),
        "raw redis, unix, sha256": lambda: hashlib.sha256(unix.get("raw")),
        "memory, copied": from_memory,
        "disk": lambda: opened[DISK].load(digest),
        "disk, not cached": lambda: (_evict(path), opened[DISK].load(digest)),
        "redis, tcp": lambda: opened["redis, tcp"].load(digest),
        "redis, unix": lambda: opened["redis, unix"].load(digest),
        "origin": lambda: opened[ORIGIN].load(digest),
    }
    for read in reads.values():
        read()
    seconds = _medians(reads, rounds)
    for files in opened.values():
        files.close()
    server.client.flushall()
    return {"seconds": seconds, "shares": _shares(seconds)}


def _shares(seconds: dict[str, float]) -> dict[str, float]:
    """What ours reaches of a raw rate; the last ones compare tiers of ours."""
    pairs = {
        "memory / raw copy": ("memory, copied", "raw copy"),
        "disk / raw file": ("disk", "raw file"),
        "disk / raw file and sha256": ("disk", "raw file, sha256"),
        "disk / the same, not cached": ("disk, not cached", "raw file, not cached, sha256"),
        "redis / raw GET, tcp": ("redis, tcp", "raw redis, tcp"),
        "redis / raw GET, unix": ("redis, unix", "raw redis, unix"),
        "redis / raw GET and sha256, unix": ("redis, unix", "raw redis, unix, sha256"),
        "origin / raw file and sha256": ("origin", "raw file, sha256"),
        "redis, tcp / disk": ("redis, tcp", "disk"),
        "redis, unix / disk": ("redis, unix", "disk"),
        "redis, unix / disk, not cached": ("redis, unix", "disk, not cached"),
    }
    return {name: seconds[raw] / seconds[ours] for name, (ours, raw) in pairs.items()}


def _medians(reads: dict[str, Read], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in reads}
    names = list(reads)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            begin = time.perf_counter()
            reads[name]()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(found) for name, found in times.items()}


def _store(root: Path, data: bytes, digest: str) -> Path:
    store = DirectoryStore(root)
    upload = store.new_upload()
    upload.write_bytes(data)
    return store.place(upload, digest)


def _fill(opened: dict[str, TieredFiles], digest: str, data: bytes) -> None:
    """Put the file into every tier that a load is timed from."""
    for name, files in opened.items():
        for tier in files.tiers:
            if tier.name in (REDIS, ORIGIN):
                assert tier.put(digest, memoryview(data)), name
    opened[MEMORY].load(digest)


def _evict(path: Path) -> None:
    """Ask the system to forget its copy of a file; it may not."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
