"""Simulated users of an experiment: each asks one question, and says whether it liked the answer.

    python deploy/demo/users.py --url http://127.0.0.1:8100 --model exp:tone --like json

What they like is planted: an answer that passes the grader of a skill (`--like`) is rated 1 with
`--liked`, any other with `--otherwise`. Prints what the users themselves know, variant by variant.
"""

import argparse
import asyncio
import os
import random
from collections import Counter
from dataclasses import dataclass, field

import httpx
from skills import GRADES

VARIANT, REQUEST_ID = "x-outfitter-variant", "x-request-id"


@dataclass
class Seen:
    """What the users saw of one variant."""

    users: int = 0
    passed: int = 0
    liked: int = 0
    errors: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True)
class Crowd:
    """Users of one model. like: the skill whose answers they like."""

    client: httpx.AsyncClient
    args: argparse.Namespace
    running: asyncio.Semaphore
    seen: dict[str, Seen]

    async def visit(self, number: int) -> None:
        """One user's question, and the rating of the answer."""
        args = self.args
        chance = random.Random(f"{args.seed}:{number}")
        prompt = chance.choice(GRADES[args.like].prompts.test)
        async with self.running:
            answer = await self.client.post("/v1/chat/completions", json=self._body(number, prompt))
        variant = answer.headers.get(VARIANT, "none").rpartition("/")[2]
        seen = self.seen.setdefault(variant, Seen())
        seen.users += 1
        if answer.status_code != 200:
            seen.errors[answer.status_code] += 1
            return
        text = answer.json()["choices"][0]["message"]["content"] or ""
        passes = GRADES[args.like].grade(prompt, text)
        likes = chance.random() < (args.liked if passes else args.otherwise)
        seen.passed += passes
        seen.liked += likes
        told = {"request_id": answer.headers[REQUEST_ID], "metric": args.metric}
        (
            await self.client.post("/v1/feedback", json={**told, "value": int(likes)})
        ).raise_for_status()

    def _body(self, number: int, prompt: str) -> dict[str, object]:
        return {
            "model": self.args.model,
            "user": f"{self.args.seed}-{number}",
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self.args.max_tokens,
        }


async def run(args: argparse.Namespace) -> dict[str, Seen]:
    key = os.environ.get("OUTFITTER_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=2 * args.concurrency)
    async with httpx.AsyncClient(
        base_url=args.url.rstrip("/"), headers=headers, timeout=600, limits=limits
    ) as client:
        crowd = Crowd(client, args, asyncio.Semaphore(args.concurrency), {})
        first = args.first
        await asyncio.gather(*(crowd.visit(n) for n in range(first, first + args.users)))
        return crowd.seen


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Simulated users of an experiment.")
    parser.add_argument("--url", default="http://127.0.0.1:8100", help="the gateway, without /v1")
    parser.add_argument("--model", required=True, help="such as exp:tone")
    parser.add_argument("--like", required=True, choices=[*GRADES], help="what they like")
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the number of the first user")
    parser.add_argument("--liked", type=float, default=0.9, help="share that rates what it likes 1")
    parser.add_argument("--otherwise", type=float, default=0.3, help="share for other answers")
    parser.add_argument("--metric", default="helpful", help="what the rating is called")
    parser.add_argument("--seed", default="user")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=32)
    return parser.parse_args()


def main() -> None:
    seen = asyncio.run(run(parse_args()))
    print(f"{'variant':12} {'users':>6} {'passed':>7} {'liked':>6}  errors")
    for variant, one in sorted(seen.items()):
        errors = ", ".join(f"{n} × {status}" for status, n in one.errors.items()) or "-"
        print(f"{variant:12} {one.users:6} {one.passed:7} {one.liked:6}  {errors}")


if __name__ == "__main__":
    main()
