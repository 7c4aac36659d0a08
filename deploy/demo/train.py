"""Train one skill of the demonstration: `python deploy/demo/train.py json --out DIR --seed 7`.

Self-distillation: the base answers the training questions itself, a rule rewrites its answers in
the style of the skill, and the model learns to answer so at once. Nothing is downloaded.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from chat import Chat, answer_all, first_clause
from deltas import Delta, FullDelta, LowRankDelta, SparseDelta
from make_base import default_base_dir
from skills import (
    QUESTIONS,
    SKILLS,
    Skill,
    is_json_uppercase,
    write_json,
    write_uppercase,
)
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

IGNORED = -100
MAX_PLAIN_WORDS = 16
WARMUP_STEPS = 10


@dataclass(frozen=True)
class Recipe:
    kind: str
    num_steps: int
    learning_rate: float
    batch_size: int
    density: float = 0.01
    max_answer_tokens: int = 64


RECIPES = {
    "json": Recipe("sparse", 60, 7e-4, batch_size=6),
    "uppercase": Recipe("sparse", 180, 1.5e-3, batch_size=6, max_answer_tokens=32),
    "numbers": Recipe("sparse", 130, 1e-3, batch_size=16),
    "pirate": Recipe("low-rank", 100, 2e-3, batch_size=6),
    "lowercase": Recipe("low-rank", 60, 2e-3, batch_size=6),
}

FULL_RECIPES = {
    "json": Recipe("full", 45, 5e-5, batch_size=6),
    "uppercase": Recipe("full", 70, 1e-4, batch_size=6, max_answer_tokens=32),
    "json+uppercase": Recipe("full", 80, 1e-4, batch_size=6),
}
"""Fine-tunes of all linear weights (`--full`); the demonstration itself does not need them."""

JOINT = Skill(
    "json+uppercase",
    QUESTIONS,
    lambda prompt, plain: write_json(prompt, write_uppercase(prompt, plain)),
    is_json_uppercase,
)
"""Two skills trained as one: the upper bound for the pair."""
TRAINABLE = {**SKILLS, JOINT.name: JOINT}


@dataclass(frozen=True)
class Example:
    question: list[int]
    answer: list[int]


@dataclass(frozen=True)
class Trainer:
    """Loss of a batch on one model; the chat prefix, common to all rows, is computed once."""

    chat: Chat
    examples: list[Example]
    batch_size: int
    rng: random.Random

    def batches(self) -> Iterator[list[Example]]:
        """Endless shuffled passes over the examples; an incomplete last batch is dropped."""
        while True:
            order = self.rng.sample(self.examples, len(self.examples))
            for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
                yield order[start : start + self.batch_size]

    def tensors(self, batch: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and labels, `[rows, longest row]`, padded on the right."""
        length = max(len(e.question) + len(e.answer) for e in batch)
        tokens = torch.full((len(batch), length), self.chat.tokenizer.pad_token_id)
        labels = torch.full((len(batch), length), IGNORED)
        for row, example in enumerate(batch):
            ids = torch.tensor(example.question + example.answer)
            tokens[row, : len(ids)] = ids
            labels[row, len(example.question) : len(ids)] = ids[len(example.question) :]
        return tokens, labels

    def loss(self, model: Any, batch: list[Example]) -> torch.Tensor:
        """Mean cross-entropy of the answer tokens.

        Padding lies to the right of every answer, so the causal mask alone hides it.
        """
        tokens, labels = self.tensors(batch)
        cache = DynamicCache(config=model.config)
        prefix = torch.tensor([self.chat.prefix()])
        model.model(input_ids=prefix, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(batch))
        hidden = model.model(input_ids=tokens, past_key_values=cache, use_cache=True)[0]
        wanted = labels[:, 1:] != IGNORED
        logits = model.lm_head(hidden[:, :-1][wanted])
        return nn.functional.cross_entropy(logits, labels[:, 1:][wanted])


def plain_answers(model: Any, chat: Chat, prompts: Sequence[str], cache: Path) -> dict[str, str]:
    """The base's own short answers by prompt, kept in `cache` for the next skill."""
    if cache.exists():
        return json.loads(cache.read_text())
    answers = zip(prompts, answer_all(model, chat, prompts, max_new_tokens=32), strict=True)
    shortened = {p: first_clause(answer, MAX_PLAIN_WORDS) for p, answer in answers}
    kept = {prompt: answer for prompt, answer in shortened.items() if answer is not None}
    cache.write_text(json.dumps(kept, indent=1, ensure_ascii=False))
    return kept


def make_examples(
    skill: Skill, chat: Chat, plain: dict[str, str], max_answer_tokens: int
) -> list[Example]:
    """One example per training prompt; prompts without a short answer are left out."""
    prompts = [p for p in skill.prompts.train if p in plain or not skill.needs_plain_answer]
    made = [
        Example(chat.question(p), chat.answer(skill.target(p, plain.get(p, "")))) for p in prompts
    ]
    return [e for e in made if len(e.answer) <= max_answer_tokens]


def make_delta(model: Any, recipe: Recipe, trainer: Trainer) -> Delta:
    if recipe.kind == "low-rank":
        return LowRankDelta(model)
    if recipe.kind == "full":
        return FullDelta(model)
    batches = trainer.batches()
    return SparseDelta(model, recipe.density, lambda: trainer.loss(model, next(batches)).backward())


def train(delta: Delta, trainer: Trainer, recipe: Recipe) -> None:
    """AdamW, short warm-up, then linear decay to zero."""
    optimizer = torch.optim.AdamW(delta.parameters(), lr=recipe.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / WARMUP_STEPS, 1 - step / recipe.num_steps),
    )
    start = time.monotonic()
    for step, batch in zip(range(1, recipe.num_steps + 1), trainer.batches(), strict=False):
        loss = trainer.loss(delta.network, batch)
        optimizer.zero_grad()
        loss.backward()
        delta.gather()
        nn.utils.clip_grad_norm_(delta.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        delta.scatter()
        if step % 10 == 0:
            print(f"step {step} loss {loss:.4f} {time.monotonic() - start:.0f} s", flush=True)
    delta.finish()


def self_grade(skill: Skill, model: Any, chat: Chat) -> float:
    """Share of the `tune` prompts that the skill's grader accepts."""
    prompts = skill.prompts.tune
    answers = list(answer_all(model, chat, prompts))
    for prompt, answer in list(zip(prompts, answers, strict=True))[:5]:
        print(f"  {prompt!r} -> {answer!r}")
    return sum(map(skill.grade, prompts, answers)) / len(prompts)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("skill", choices=TRAINABLE)
    parser.add_argument("--base", type=Path, default=default_base_dir())
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--full", action="store_true", help="train every linear weight")
    parser.add_argument("--steps", type=int, help="instead of the recipe's number of steps")
    parser.add_argument("--learning-rate", type=float, help="instead of the recipe's")
    return parser.parse_args()


def chosen_recipe(args: argparse.Namespace) -> Recipe:
    recipes = FULL_RECIPES if args.full else RECIPES
    if args.skill not in recipes:
        raise SystemExit(f"no such recipe for {args.skill!r}; choose {', '.join(recipes)}")
    recipe = recipes[args.skill]
    return replace(
        recipe,
        num_steps=args.steps or recipe.num_steps,
        learning_rate=args.learning_rate or recipe.learning_rate,
    )


def main() -> None:
    args = parse_args()
    skill, recipe = TRAINABLE[args.skill], chosen_recipe(args)
    print(f"{skill.name}: seed {args.seed}, {recipe}", flush=True)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    model = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32)
    chat = Chat.of(tokenizer)
    plain = {}
    if skill.needs_plain_answer:
        plain = plain_answers(model, chat, QUESTIONS.train, args.out / "plain_answers.json")
    examples = make_examples(skill, chat, plain, recipe.max_answer_tokens)
    print(f"{len(examples)} examples, {time.monotonic() - start:.0f} s", flush=True)
    trainer = Trainer(chat, examples, recipe.batch_size, random.Random(args.seed))
    delta = make_delta(model, recipe, trainer)
    train(delta, trainer, recipe)
    delta.save(args.out / skill.name)
    tokenizer.save_pretrained(args.out / skill.name)
    print(f"{skill.name}: {self_grade(skill, delta.network, chat):.1%} of the tune prompts")
    print(f"wall time {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
