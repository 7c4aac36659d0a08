"""One model in memory that wears a task vector and takes it off again, bit for bit."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from chat import Chat
from transformers import AutoModelForCausalLM, AutoTokenizer

from taskvectors.vector import TaskVector


class Resident:
    """The base in float32, merged densely with one task vector at a time.

    The merged weights are plain tensors that transformers computes with: nothing of Outfitter's
    serving path takes part, so the figures say what a merged checkpoint would do.
    """

    def __init__(self, base: Path) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self.model.requires_grad_(False).eval()
        self.chat = Chat.of(AutoTokenizer.from_pretrained(base))
        self.weights: dict[str, torch.Tensor] = dict(self.model.named_parameters())

    @contextmanager
    def wearing(self, vector: TaskVector | None) -> Iterator[Any]:
        """The model with `vector` added; afterwards the saved originals are put back."""
        deltas = {} if vector is None else vector.parameters
        saved = {name: self.weights[name].clone() for name in deltas}
        try:
            for name, delta in deltas.items():
                self.weights[name] += torch.from_numpy(delta.to_dense())
            yield self.model
        finally:
            for name, original in saved.items():
                self.weights[name].copy_(original)
