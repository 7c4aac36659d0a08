"""The prompts of an evaluation, and their split into those searched on and those held out."""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outfitter.config import InvalidConfig

MIN_SIDE = 4
"""Prompts that either side of a split has at least."""


@dataclass(frozen=True)
class Prompt:
    """One line of the file. row: all of its fields; expected: None where it says nothing."""

    messages: tuple[Mapping[str, Any], ...]
    row: Mapping[str, Any]

    @property
    def expected(self) -> Any:
        """What a right answer is, in the grader's own terms."""
        return self.row.get("expected")

    @property
    def text(self) -> str:
        """The last message."""
        return str(self.messages[-1].get("content", ""))

    @property
    def key(self) -> str:
        """Equal for prompts that ask the same."""
        return json.dumps(self.messages, sort_keys=True, ensure_ascii=False)


@dataclass(frozen=True)
class Split:
    """Positions of prompts in the file, each side in the order in which it is asked."""

    search: tuple[int, ...]
    held_out: tuple[int, ...]


def read_prompts(path: Path) -> tuple[list[Prompt], str]:
    """The prompts of a file of JSON lines, and the sha256 of the file; raises InvalidConfig."""
    try:
        content = path.read_bytes()
        lines = content.decode().split("\n")
    except UnicodeDecodeError as error:
        raise InvalidConfig(f"{path} is not UTF-8: {error}") from error
    except OSError as error:
        raise InvalidConfig(f"cannot read --eval {path}: {error.strerror}") from error
    prompts = [_prompt(text, f"{path}:{n}") for n, text in enumerate(lines, 1) if text.strip()]
    return prompts, hashlib.sha256(content).hexdigest()


def split_prompts(prompts: Sequence[Prompt], held_out: float, seed: int) -> Split:
    """A seeded split by what is asked: prompts that ask the same are on one side.

    held_out: the share that is held out, in (0, 1). Raises InvalidConfig for too few prompts.
    """
    groups: dict[str, list[int]] = {}
    for position, prompt in enumerate(prompts):
        groups.setdefault(prompt.key, []).append(position)
    shuffled = [*groups.values()]
    random.Random(seed).shuffle(shuffled)  # noqa: S311 - a split is no secret
    cut = round(len(shuffled) * held_out)
    if min(cut, len(shuffled) - cut) < MIN_SIDE:
        raise InvalidConfig(
            f"{len(shuffled)} different prompts with --held-out {held_out:g} leave {cut} held out"
            f" and {len(shuffled) - cut} to search on; both must be {MIN_SIDE} or more"
        )
    held, searched = shuffled[:cut], shuffled[cut:]
    return Split(tuple(i for group in searched for i in group), tuple(i for g in held for i in g))


def _prompt(line: str, where: str) -> Prompt:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidConfig(f"{where} is not JSON: {line[:80]!r}") from error
    if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row):
        raise InvalidConfig(f'{where} needs either "prompt" or "messages": {line[:80]!r}')
    if "prompt" in row:
        if not isinstance(row["prompt"], str) or not row["prompt"]:
            raise InvalidConfig(f"{where}: prompt must be a text, not {str(row['prompt'])[:80]!r}")
        return Prompt(({"role": "user", "content": row["prompt"]},), row)
    messages = row["messages"]
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise InvalidConfig(f'{where}: messages must be a list of {{"role": …, "content": …}}')
    return Prompt(tuple(messages), row)


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and isinstance(message.get("role"), str)
