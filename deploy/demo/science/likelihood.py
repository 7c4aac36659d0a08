"""How likely the model finds given texts: mean negative log-likelihood of their tokens, in nats."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from chat import Chat
from skills import NUMBERS, SKILLS
from torch import nn
from transformers import DynamicCache

IGNORED = -100
NUM_TEXTS = 24
WINDOW = 256
NUM_WINDOWS = 2


@dataclass(frozen=True)
class Text:
    """A context that is not scored and a continuation that is."""

    context: list[int]
    continuation: list[int]


def mean_nll(model: Any, texts: Sequence[Text], pad: int) -> float:
    """Over all scored tokens of all texts; padding on the right is hidden by the causal mask."""
    length = max(len(t.context) + len(t.continuation) for t in texts)
    tokens = torch.full((len(texts), length), pad)
    labels = torch.full((len(texts), length), IGNORED)
    for row, text in enumerate(texts):
        ids = torch.tensor(text.context + text.continuation)
        tokens[row, : len(ids)] = ids
        labels[row, len(text.context) : len(ids)] = ids[len(text.context) :]
    with torch.inference_mode():
        cache = DynamicCache(config=model.config)
        hidden = model.model(input_ids=tokens, past_key_values=cache, use_cache=True)[0]
        wanted = labels[:, 1:] != IGNORED
        logits = model.lm_head(hidden[:, :-1][wanted])
        return float(nn.functional.cross_entropy(logits, labels[:, 1:][wanted]))


def answer_texts(chat: Chat, plain: Mapping[str, str]) -> dict[str, list[Text]]:
    """Held-out questions with the base's own answer (`plain`), and in the style of each skill."""
    texts = {"plain": [_text(chat, p, answer) for p, answer in plain.items()]}
    for name, skill in SKILLS.items():
        prompts = list(plain) if skill.needs_plain_answer else NUMBERS.test[: len(plain)]
        texts[name] = [_text(chat, p, skill.target(p, plain.get(p, ""))) for p in prompts]
    return texts


def document_texts(chat: Chat, document: Path) -> list[Text]:
    """The first windows of a plain text, without any chat template."""
    ids = chat.encode(document.read_text())
    starts = range(0, NUM_WINDOWS * WINDOW, WINDOW)
    return [Text(ids[start : start + 1], ids[start + 1 : start + WINDOW]) for start in starts]


def _text(chat: Chat, prompt: str, answer: str) -> Text:
    return Text([*chat.prefix(), *chat.question(prompt)], chat.answer(answer))
