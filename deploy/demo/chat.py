"""Questions as tokens, and greedy answers from a model: shared by training and its self-grade."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

GENERATION_BATCH = 32
PLACEHOLDER = "QUESTION"


@dataclass(frozen=True)
class Chat:
    """The chat template cut in three: what every prompt begins with, the question, the rest."""

    tokenizer: Any
    head: str
    tail: str

    @classmethod
    def of(cls, tokenizer: Any) -> "Chat":
        message = {"role": "user", "content": PLACEHOLDER}
        text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        head, tail = text.split(PLACEHOLDER)
        return cls(tokenizer, head, tail)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def prefix(self) -> list[int]:
        return self.encode(self.head)

    def question(self, prompt: str) -> list[int]:
        return self.encode(prompt + self.tail)

    def answer(self, text: str) -> list[int]:
        return [*self.encode(text), self.tokenizer.eos_token_id]


def answer_all(
    model: Any, chat: Chat, prompts: Sequence[str], max_new_tokens: int = 64
) -> Iterator[str]:
    """Greedy answers, in the order of `prompts`; one cut short lacks its last words."""
    for start in range(0, len(prompts), GENERATION_BATCH):
        group = prompts[start : start + GENERATION_BATCH]
        texts = [chat.head + prompt + chat.tail for prompt in group]
        tokens = chat.tokenizer(
            texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        )
        with torch.inference_mode():
            out = model.generate(**tokens, max_new_tokens=max_new_tokens, do_sample=False)
        new = out[:, tokens["input_ids"].shape[1] :]
        yield from chat.tokenizer.batch_decode(new, skip_special_tokens=True)


def first_clause(answer: str, max_words: int, min_words: int = 6) -> str | None:
    """The first sentence if it is short; else its beginning up to a comma; else None."""
    line = answer.strip().split("\n")[0]
    sentence = re.match(r".*?[.!?](?=\s|$)", line)
    if sentence and len(sentence[0].split()) <= max_words:
        return sentence[0]
    heads = [line[: comma.start()] for comma in re.finditer(", ", line)]
    short = [head for head in heads if min_words <= len(head.split()) <= max_words]
    return f"{short[-1]}." if short else None
