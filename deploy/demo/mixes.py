"""Prompts and a grader for `outfitter tune`: mixes of the demonstration's skills.

    python deploy/demo/mixes.py json+uppercase --count 160 > prompts.jsonl
    outfitter tune --vectors json uppercase --eval prompts.jsonl --grader deploy/demo/mixes.py

The prompts are those of the splits `tune` and `test`: no skill was trained on them. Several mixes
share the prompts evenly, and each is graded on its own.
"""

import argparse
import json
from typing import Any

from skills import GRADES


def grade(prompt: str, answer: str, row: dict[str, Any]) -> bool:
    """By the grader that the line names."""
    return GRADES[row["mix"]].grade(prompt, answer)


def rows(mixes: list[str], count: int) -> list[dict[str, str]]:
    """As many prompts of each, interleaved."""
    shares = [[*GRADES[mix].prompts.tune, *GRADES[mix].prompts.test] for mix in mixes]
    per_mix = count // len(mixes)
    return [
        {"prompt": share[i], "mix": mix}
        for i in range(per_mix)
        for mix, share in zip(mixes, shares, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Print prompts as JSON lines.")
    parser.add_argument("mixes", nargs="+", choices=GRADES, metavar="MIX", help=", ".join(GRADES))
    parser.add_argument("--count", type=int, default=160)
    args = parser.parse_args()
    for row in rows(args.mixes, args.count):
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
