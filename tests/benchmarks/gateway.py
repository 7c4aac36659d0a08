"""What the gateway costs, beside no gateway and PyPI's `vllm-router`, on the same upstream.

    python -m tests.benchmarks.gateway -o tests/benchmarks/results/gateway.json
    python -m tests.benchmarks.gateway --model ~/.cache/outfitter/smollm2-135m-instruct \
        -o tests/benchmarks/results/gateway_model.json

The upstream is a stand-in (upstream.py), which the gateway reaches on a unix socket as it reaches
vLLM, and the others over TCP. The sides take turns; figures are medians of the rounds, and what a
side adds is its round's median less that of `direct` in the same round (`least`: of the round with
the least of it, since the machine may be shared). With `--model` the upstream
is a real vLLM, asked on its own socket and through the gateway.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from taskvectors.bench.machine import write_result
from tests.benchmarks.fronts import Front, fronts, router_path, router_version
from tests.benchmarks.gateway_figures import latency_figures, throughput_figures

RESULTS = Path(__file__).parent / "results" / "gateway.json"
STREAMS = (1, 32, 256)
MODEL_STREAMS, MODEL_TOKENS = 64, 64
GAP_MS = 50
"""Between the events of the streams that flow beside a probe: 20 tokens a second each."""
WAYS: dict[str, dict[str, int]] = {
    "an event a write": {"events": 2000},
    "16 events a write": {"events": 4000, "burst": 16},
    "an event each 10 ms": {"events": 200, "gap_ms": 10},
}
Rows = list[dict[str, Any]]


def main() -> None:
    """Measure, print and write."""
    options = parse(sys.argv[1:])
    result = of_model(options) if options.model else of_stand_in(options)
    told = [f"--rounds {options.rounds}", *(["--model …"] if options.model else [])]
    command = f"python -m tests.benchmarks.gateway {' '.join(told)}"
    write_result(options.out, {"command": command, "load_average": os.getloadavg(), **result})
    print(json.dumps(result["figures"], indent=1))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, as they are on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--probes", type=int, default=200, help="of a kind, in a round")
    parser.add_argument("--streams", type=int, nargs="+", default=list(STREAMS))
    parser.add_argument("--open", type=int, default=256, help="streams held for their memory")
    parser.add_argument("--share", type=float, default=1.0, help="of the events of a stream")
    parser.add_argument("--router", default="vllm-router", help="the program; left out if absent")
    parser.add_argument("--model", type=Path, help="a real vLLM of this model instead")
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def of_stand_in(options: argparse.Namespace) -> dict[str, Any]:
    """Every figure on the stand-in."""
    router = router_path(options.router)
    rows: Rows = []
    with fronts(router) as sides:
        held = memory(sides, options.open)
        for turn in range(options.rounds):
            order = sides[turn % len(sides) :] + sides[: turn % len(sides)]
            for streams in options.streams:
                rows += [latency(side, streams, options.probes, turn) for side in order]
            for way in WAYS:
                rows += [throughput(side, way, options.share, turn) for side in order]
            print(f"round {turn + 1} of {options.rounds}", flush=True)
    return {
        "what": "a stand-in streams; events per CPU second are of the side's own process",
        "vllm-router": None if router is None else router_version(router),
        "figures": {
            "latency": latency_figures(rows),
            "throughput": throughput_figures(rows),
            "kib_per_open_stream": held,
        },
        "rows": rows,
    }


def latency(side: Front, streams: int, probes: int, turn: int) -> dict[str, Any]:
    """Microseconds of each probe, one after another, while `streams` − 1 others flow."""
    asked = {"streams": streams, "gap_ms": GAP_MS, "probes": probes}
    times = _client(side, "latency", **asked)
    row = {"measure": "latency", "side": side.name, "streams": streams, "round": turn}
    return {**row, **{f"{kind}_us": _microseconds(found) for kind, found in times.items()}}


def throughput(side: Front, way: str, share: float, turn: int) -> dict[str, Any]:
    """Events, seconds, and CPU seconds of the side, with 64 streams at once."""
    asked = {**WAYS[way], "events": max(1, round(WAYS[way]["events"] * share))}
    before = side.cpu_seconds
    found = _client(side, "throughput", streams=64, **asked)
    row = {"measure": "throughput", "side": side.name, "way": way, "round": turn, **found}
    return {**row, "cpu_seconds": side.cpu_seconds - before}


def memory(sides: Sequence[Front], streams: int) -> dict[str, list[float]]:
    """KiB that each of the first `streams` idle streams adds, and each of as many more."""
    found: dict[str, list[float]] = {}
    for side in sides:
        if side.process is None or "base" in side.name:
            continue
        _client(side, "throughput", streams=1, events=10)
        sizes = [side.uss]
        with _held(side, streams):
            sizes.append(side.uss)
            with _held(side, streams):
                sizes.append(side.uss)
        steps = itertools.pairwise(sizes)
        found[side.name] = [round((after - before) / streams / 1024, 1) for before, after in steps]
    return found


def of_model(options: argparse.Namespace) -> dict[str, Any]:
    """Throughput of a real vLLM, on its own socket and through the gateway, in turns."""
    from tests.end_to_end.conftest import serving  # slow to import

    limits = ("--max-model-len", "256", "--", "--max-num-seqs", str(MODEL_STREAMS))
    with (
        tempfile.TemporaryDirectory() as name,
        serving(options.model, "model", Path(name), *limits) as gateway,
    ):
        port = int(gateway.url.rpartition(":")[2])
        ways = {"direct": {"uds": str(gateway.engine_socket())}, "outfitter": {"port": port}}
        rows = [row for turn in range(-1, options.rounds) for row in model_rows(ways, turn)]
    rows = [row for row in rows if row["round"] >= 0]  # before that it warmed up
    seconds = {side: [r["seconds"] for r in rows if r["side"] == side] for side in ways}
    shares = [d / o for d, o in zip(seconds["direct"], seconds["outfitter"], strict=True)]
    tokens = MODEL_STREAMS * MODEL_TOKENS
    return {
        "what": f"{MODEL_STREAMS} streams of {MODEL_TOKENS} tokens at once, of a real vLLM",
        "figures": {
            "tokens_per_s": {
                s: round(tokens / statistics.median(t), 1) for s, t in seconds.items()
            },
            "share_of_direct": round(statistics.median(shares), 4),
        },
        "rows": rows,
    }


def model_rows(ways: dict[str, dict[str, Any]], turn: int) -> Rows:
    """One round of a real model: every way the same streams; who begins changes."""
    messages = [{"role": "user", "content": f"Tell me of coat {turn}."}]
    fields = {"model": "model", "messages": messages, "max_tokens": MODEL_TOKENS}
    fields |= {"ignore_eos": True, "temperature": 0}
    asked = {"fields": fields, "streams": MODEL_STREAMS, "events": MODEL_TOKENS}
    order = sorted(ways, reverse=bool(turn % 2))
    found = [(side, run_client("throughput", **ways[side], **asked)) for side in order]
    print(f"round {turn + 1}: {found}", flush=True)
    return [{"side": side, "round": turn, **seen} for side, seen in found]


def run_client(measure: str, **asked: object) -> Any:
    """What the client saw; raises RuntimeError with what it says when it fails."""
    command = [sys.executable, "-m", "tests.benchmarks.sse_client"]
    told = json.dumps({"measure": measure, **asked})
    done = subprocess.run([*command, told], capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{told[:200]}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def _client(side: Front, measure: str, **asked: object) -> Any:
    return run_client(measure, port=side.port, fields=side.fields, **asked)


@contextlib.contextmanager
def _held(side: Front, streams: int) -> Iterator[None]:
    """As many open streams, idle after their first event."""
    asked = {"measure": "idle", "port": side.port, "fields": side.fields, "streams": streams}
    command = [sys.executable, "-m", "tests.benchmarks.sse_client", json.dumps(asked)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        time.sleep(1.0)
        yield
        process.communicate("\n")


def _microseconds(seconds: Sequence[float]) -> str:
    """Numbers in one text, which JSON keeps on one line."""
    return " ".join(str(round(second * 1e6)) for second in seconds)


if __name__ == "__main__":
    main()
