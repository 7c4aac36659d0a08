"""Evaluations per minute: on one live engine, and by merging checkpoints and restarting it.

    python -m tests.benchmarks.tuning --model MODEL -o tests/benchmarks/results/tuning_speed.json

Both ask the same prompts of the same mixes of two demonstration skills. Live: all mixes at once on
one gateway. Merging: for each mix a checkpoint is written, and stock vLLM started, asked, stopped.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from taskvectors.bench.machine import write_result
from tests.end_to_end.conftest import outfitter, serving

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "deploy" / "demo"
SKILLS = ("json", "uppercase")
MIXES = ((1.0, 1.0), (1.2, 0.8), (0.5, 0.5), (1.3, 0.6), (0.8, 1.0), (1.1, 0.9), (0.9, 0.7), (1, 0))

ENVIRONMENT = {
    "VLLM_PLUGINS": "",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "HF_HUB_OFFLINE": "1",
}


async def ask(url: str, model: str, asked: Sequence[tuple[str, Any]], tokens: int) -> list[str]:
    """Answers to prompts, each with its mix or None."""
    running = asyncio.Semaphore(32)

    async def one(client: httpx.AsyncClient, prompt: str, mix: Any) -> str:
        body: dict[str, Any] = {"model": model, "temperature": 0, "max_tokens": tokens}
        body["messages"] = [{"role": "user", "content": prompt}]
        if mix is not None:
            body["task_vectors"] = {s: w for s, w in zip(SKILLS, mix, strict=True) if w}
        async with running:
            answer = await client.post(f"{url}/v1/chat/completions", json=body)
        answer.raise_for_status()
        return str(answer.json()["choices"][0]["message"]["content"])

    async with httpx.AsyncClient(timeout=900) as client:
        return await asyncio.gather(*(one(client, prompt, mix) for prompt, mix in asked))


def live(url: str, name: str, prompts: list[str], tokens: int) -> tuple[float, list[str]]:
    """Seconds for all mixes on all prompts, after one answer that warms up; and the answers."""
    asyncio.run(ask(url, name, [(prompts[0], MIXES[0])], tokens))
    start = time.monotonic()
    asked = [(prompt, mix) for mix in MIXES for prompt in prompts]
    answers = asyncio.run(ask(url, name, asked, tokens))
    return time.monotonic() - start, answers


@contextlib.contextmanager
def gateway(model: Path, url: str | None) -> Iterator[tuple[str, str]]:
    """A gateway with the skills: the one at `url`, or one that is started. Its URL and base."""
    if url is not None:
        yield url, httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(model, "base", Path(folder), "--max-model-len", "1024") as started,
    ):
        for skill in SKILLS:
            file = f"{DEMO}/vectors/{skill}.safetensors"
            outfitter("push", file, "--name", skill, "--url", started.url)
        yield started.url, started.model


def merged(model: Path, mix: Sequence[float], prompts: list[str], tokens: int) -> dict[str, Any]:
    """Seconds of each part of one evaluation on a checkpoint of its own, and the answers."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        pairs = zip(SKILLS, mix, strict=True)
        vectors = [f"{DEMO}/vectors/{skill}.safetensors={w}" for skill, w in pairs if w]
        target = Path(folder) / "merged"
        export = ["export", "--to", "checkpoint", "--base", str(model), "-o", str(target)]
        outfitter(*export, *vectors)
        for file in model.iterdir():
            if not (target / file.name).exists() and file.suffix in (".json", ".jinja"):
                shutil.copy(file, target)
        written = time.monotonic()
        with stock(target, Path(folder)) as url:
            ready = time.monotonic()
            answers = asyncio.run(
                ask(url, "merged", [(prompt, None) for prompt in prompts], tokens)
            )
            answered = time.monotonic()
        return {
            "merge_s": round(written - start, 2),
            "start_s": round(ready - written, 2),
            "answer_s": round(answered - ready, 2),
            "stop_s": round(time.monotonic() - answered, 2),
            "answers": answers,
        }


class stock:
    """Stock `vllm serve` on a checkpoint, with the settings that the gateway gives its engine."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.port = int(os.environ.get("STOCK_PORT", "8391"))
        command = [
            sys.executable,
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            str(model),
        ]
        command += ["--served-model-name", "merged", "--dtype", "float32", "--enforce-eager"]
        command += ["--max-model-len", "1024", "--port", str(self.port)]
        environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ, **ENVIRONMENT}
        self.log = folder / "vllm.log"
        with self.log.open("wb") as sink:
            self.process = subprocess.Popen(
                command, stdout=sink, stderr=subprocess.STDOUT, env=environment
            )

    def __enter__(self) -> str:
        url = f"http://127.0.0.1:{self.port}"
        while True:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                    return url
            except httpx.HTTPError:
                pass
            time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=90)


def main() -> None:
    parser = argparse.ArgumentParser(description="Live engine against merging and restarting.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--url", help="A running gateway with the skills, instead of a new one.")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--max-tokens", type=int, default=40)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    made = [sys.executable, str(DEMO / "mixes.py"), "json+uppercase", "--count", str(args.prompts)]
    lines = subprocess.run(made, check=True, capture_output=True, text=True).stdout.splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    with gateway(args.model, args.url) as (url, name):
        seconds, answers = live(url, name, prompts, args.max_tokens)
    print(f"live: {len(MIXES)} mixes in {seconds:.1f} s", flush=True)
    restarts = []
    for i, mix in enumerate(MIXES[: args.restarts]):
        found = merged(args.model, mix, prompts, args.max_tokens)
        ours = answers[i * len(prompts) : (i + 1) * len(prompts)]
        pairs = zip(found.pop("answers"), ours, strict=True)
        found["equal_answers"] = sum(a == b for a, b in pairs)
        found["mix"] = dict(zip(SKILLS, mix, strict=True))
        print(found, flush=True)
        restarts.append(found)
    parts = ("merge_s", "start_s", "answer_s", "stop_s")
    each = sum(sum(one[part] for part in parts) for one in restarts) / len(restarts)
    live_rate, merged_rate = len(MIXES) / seconds * 60, 60 / each
    result = {
        "command": f"python -m tests.benchmarks.tuning --model MODEL --prompts {args.prompts}"
        f" --max-tokens {args.max_tokens} --restarts {args.restarts}",
        "prompts_per_evaluation": len(prompts),
        "live": {
            "loadouts_at_once": len(MIXES),
            "seconds": round(seconds, 2),
            "evaluations_per_minute": round(live_rate, 2),
        },
        "merging": {"each": restarts, "evaluations_per_minute": round(merged_rate, 3)},
        "times_faster": round(live_rate / merged_rate, 1),
        "load_average": os.getloadavg(),
    }
    write_result(args.output, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
