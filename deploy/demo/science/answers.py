"""Greedy answers in one batch: the chat prefix computed once, a row dropped once it is settled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from chat import Chat
from transformers import DynamicCache

Settled = Callable[[str, str], bool]
"""(prompt, answer so far) → True where no further word can change any grade."""


@dataclass(frozen=True)
class Question:
    """A prompt, the most tokens that its answer may have, and when it is settled."""

    prompt: str
    limit: int
    settled: Settled

    def is_done(self, answer: str, num_tokens: int) -> bool:
        """Nothing more needs to be written."""
        return num_tokens >= self.limit or self.settled(self.prompt, answer)


@dataclass
class Batch:
    """The rows still being written: their places in the answer list, masks and new tokens."""

    cache: DynamicCache
    rows: torch.Tensor
    mask: torch.Tensor
    last: torch.Tensor
    written: list[list[int]]

    def keep(self, alive: list[int]) -> None:
        """Go on with the rows at these places only."""
        places = torch.tensor(alive)
        self.cache.batch_select_indices(places)
        self.rows, self.mask, self.last = (
            self.rows[places],
            self.mask[places],
            self.last[places],
        )
        self.written = [self.written[place] for place in alive]


@torch.inference_mode()
def greedy_answers(model: Any, chat: Chat, questions: Sequence[Question]) -> list[str]:
    """One answer a question; a settled one is cut short."""
    batch = start(model, chat, [question.prompt for question in questions])
    answers = [""] * len(questions)
    while True:
        alive = []
        rows = zip(batch.rows.tolist(), batch.last.tolist(), strict=True)
        for place, (row, token) in enumerate(rows):
            if token == chat.tokenizer.eos_token_id:
                continue
            written = batch.written[place]
            written.append(token)
            answers[row] = chat.tokenizer.decode(written, skip_special_tokens=True)
            if not questions[row].is_done(answers[row], len(written)):
                alive.append(place)
        if not alive:
            return answers
        if len(alive) < len(batch.written):
            batch.keep(alive)
        advance(model, batch)


def start(model: Any, chat: Chat, prompts: Sequence[str]) -> Batch:
    """The prefix once, then every question, padded on the left; the first new token of each."""
    cache = DynamicCache(config=model.config)
    prefix = torch.tensor([chat.prefix()])
    model.model(input_ids=prefix, past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(prompts))
    questions = [chat.question(prompt) for prompt in prompts]
    length = max(map(len, questions))
    tokens = torch.full((len(prompts), length), chat.tokenizer.pad_token_id)
    mask = torch.ones((len(prompts), prefix.shape[1] + length), dtype=torch.long)
    for row, question in enumerate(questions):
        tokens[row, length - len(question) :] = torch.tensor(question)
        mask[row, prefix.shape[1] : prefix.shape[1] + length - len(question)] = 0
    last = forward(model, cache, tokens, mask)
    return Batch(cache, torch.arange(len(prompts)), mask, last, [[] for _ in prompts])


def advance(model: Any, batch: Batch) -> None:
    """One more token for every row."""
    batch.mask = torch.cat([batch.mask, torch.ones_like(batch.mask[:, :1])], dim=1)
    batch.last = forward(model, batch.cache, batch.last[:, None], batch.mask)


def forward(
    model: Any, cache: DynamicCache, tokens: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """The likeliest next token of each row, `[rows]`."""
    positions = (mask.cumsum(1) - 1)[:, -tokens.shape[1] :].clamp(min=0)
    out = model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    best: torch.Tensor = out.logits[:, -1].argmax(-1)
    return best
