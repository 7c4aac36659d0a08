"""How likely the model finds given texts: mean negative log-likelihood of their tokens, in nats."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from chat import Chat
from skills import NUMBERS, SKILLS
from torch import nn
from train import Example, Trainer

NUM_TEXTS = 16
WINDOW = 256
NUM_WINDOWS = 2
DOCUMENT = "license"


class Likelihood:
    """Held-out questions with given answers, and a plain text without any chat template.

    plain: the base's own answers by question. Kinds: `plain`, each skill's style of the same
    answers, and `license`.
    """

    def __init__(self, chat: Chat, plain: Mapping[str, str], document: Path) -> None:
        self._trainer = Trainer(chat, [], NUM_TEXTS, random.Random(0))
        self._answers = {"plain": [_example(chat, p, answer) for p, answer in plain.items()]}
        for name, skill in SKILLS.items():
            prompts = list(plain) if skill.needs_plain_answer else NUMBERS.test[: len(plain)]
            targets = [skill.target(p, plain.get(p, "")) for p in prompts]
            self._answers[name] = list(map(_example, [chat] * len(plain), prompts, targets))
        ids = chat.encode(document.read_text())
        self._windows = torch.tensor(ids[: NUM_WINDOWS * WINDOW]).reshape(NUM_WINDOWS, WINDOW)

    @torch.inference_mode()
    def nll(self, model: Any, kind: str) -> float:
        """Of the answers' tokens, or of every token of a window but its first."""
        if kind != DOCUMENT:
            return float(self._trainer.loss(model, self._answers[kind]))
        logits = model(input_ids=self._windows).logits[:, :-1]
        return float(
            nn.functional.cross_entropy(logits.flatten(0, 1), self._windows[:, 1:].flatten())
        )


def _example(chat: Chat, prompt: str, answer: str) -> Example:
    return Example(chat.question(prompt), chat.answer(answer))
