"""The oracle: transformers on weights that PEFT merged densely."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft.utils.merge_utils import task_arithmetic
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

Deltas = Mapping[str, Tensor]
Weighted = tuple[Deltas, float, Callable[[str], float] | None]
"""Dense deltas, their weight, and a factor per parameter name (None: 1 everywhere)."""


@dataclass(frozen=True)
class Comparison:
    """How an answer compares with the oracle: the first wrong token, the largest difference."""

    first_wrong: int | None
    max_difference: float


class Oracle:
    """A float32 model whose weights are merged, used, and put back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._parameters = dict(self._model.named_parameters())

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the folder."""
        return AutoTokenizer.from_pretrained(self._folder)

    @contextlib.contextmanager
    def merged(self, mix: Sequence[Weighted]) -> Iterator[None]:
        """While open, the model is base + Σ weight · factor · delta."""
        saved = {}
        for name in sorted({name for deltas, _, _ in mix for name in deltas}):
            terms = [
                (deltas[name], weight * (factor(name) if factor else 1.0))
                for deltas, weight, factor in mix
                if name in deltas
            ]
            weights = torch.tensor([weight for _, weight in terms])
            parameter = self._parameters[name].data
            saved[name] = parameter.clone()
            parameter += task_arithmetic([delta for delta, _ in terms], weights)
        try:
            yield
        finally:
            for name, original in saved.items():
                self._parameters[name].data.copy_(original)

    def compare(self, prompt: str, tokens: Sequence[str], logprobs: Sequence[float]) -> Comparison:
        """Compare an answer whose tokens are written `token_id:5`."""
        answer_ids = [int(token.removeprefix("token_id:")) for token in tokens]
        return self.compare_ids(self.tokenizer(prompt).input_ids, answer_ids, logprobs)

    @torch.inference_mode()
    def compare_ids(
        self, prompt_ids: list[int], answer_ids: list[int], logprobs: Sequence[float]
    ) -> Comparison:
        """Feed prompt and answer once; every token must be the argmax, every logprob equal."""
        logits = self._model(torch.tensor([prompt_ids + answer_ids[:-1]])).logits[0]
        expected = torch.log_softmax(logits[len(prompt_ids) - 1 :], -1)
        best = expected.argmax(-1).tolist()
        wrong = [i for i, (a, b) in enumerate(zip(answer_ids, best, strict=True)) if a != b]
        chosen = expected[torch.arange(len(answer_ids)), torch.tensor(answer_ids)]
        difference = (chosen - torch.tensor(logprobs)).abs().max().item()
        return Comparison(wrong[0] if wrong else None, difference)

    @torch.inference_mode()
    def prompt_logprobs(self, prompt: str) -> list[float]:
        """The log probability of each prompt token but the first."""
        ids = self.tokenizer(prompt).input_ids
        logprobs = torch.log_softmax(self._model(torch.tensor([ids])).logits[0], -1)
        return logprobs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].tolist()
