"""The kinds of task vector that are trained: sparse full-rank, low-rank, and every weight.

All offer the same four things to the training loop: `parameters` to optimise, `gather` the
gradients of the last backward pass, `scatter` the new values into the model, and `finish`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

LORA_RANK = 8
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]


class Delta(Protocol):
    """What the training loop knows of a task vector in the making."""

    network: Any

    def parameters(self) -> list[nn.Parameter]: ...

    def gather(self) -> None:
        """Put the gradients of the last backward pass on `parameters`."""

    def scatter(self) -> None:
        """Make the model compute with the new `parameters`."""

    def finish(self) -> None:
        """Round the delta to bf16, the precision that the task vector file keeps."""

    def save(self, folder: Path) -> None: ...


def linear_weights(model: Any) -> list[nn.Parameter]:
    """The weights of every linear layer of the decoder: neither embeddings, head nor norms."""
    return [m.weight for m in model.model.modules() if isinstance(m, nn.Linear)]


def largest(scores: torch.Tensor, density: float) -> torch.Tensor:
    """Flat indices of the `int(density * numel)` largest entries, ascending."""
    count = max(1, int(density * scores.numel()))
    return scores.flatten().topk(count).indices.sort().values


class SparseDelta:
    """Trains a fixed share of the entries of each linear weight, all other entries frozen.

    `w.flat[idx] = saved + values`: the values of all weights lie in one flat float32 parameter,
    so AdamW keeps state for the selected entries only.
    """

    def __init__(self, model: Any, density: float, backward: Callable[[], None]) -> None:
        """`backward` accumulates gradients over one batch; entries are chosen by sum of |g|."""
        self.network = model.requires_grad_(False)
        self.weights = linear_weights(model)
        for weight in self.weights:
            weight.requires_grad_(True)
        self.indices = [largest(s, density) for s in self._scores(backward)]
        self.saved = [
            w.detach().flatten()[i] for w, i in zip(self.weights, self.indices, strict=True)
        ]
        self.sizes = [len(i) for i in self.indices]
        self.values = nn.Parameter(torch.zeros(sum(self.sizes)))

    def _scores(self, backward: Callable[[], None], num_batches: int = 4) -> list[torch.Tensor]:
        scores = [torch.zeros_like(w) for w in self.weights]
        for _ in range(num_batches):
            backward()
            for score, weight in zip(scores, self.weights, strict=True):
                score += weight.grad.abs()
                weight.grad = None
        return scores

    def parameters(self) -> list[nn.Parameter]:
        return [self.values]

    def gather(self) -> None:
        self.values.grad = torch.cat(
            [w.grad.flatten()[i] for w, i in zip(self.weights, self.indices, strict=True)]
        )
        for weight in self.weights:
            weight.grad = None

    @torch.no_grad()
    def scatter(self) -> None:
        parts = self.values.split(self.sizes)
        rows = zip(self.weights, self.indices, self.saved, parts, strict=True)
        for weight, index, saved, part in rows:
            weight.view(-1)[index] = saved + part

    @torch.no_grad()
    def finish(self) -> None:
        self.values.copy_(self.values.bfloat16())
        self.scatter()

    def save(self, folder: Path) -> None:
        """The whole fine-tuned checkpoint."""
        self.network.save_pretrained(folder)


class FullDelta:
    """Trains every entry of every linear weight: what a density curve is cut from."""

    def __init__(self, model: Any) -> None:
        self.network = model.requires_grad_(False)
        self.weights = linear_weights(model)
        self.saved = [weight.detach().clone() for weight in self.weights]
        for weight in self.weights:
            weight.requires_grad_(True)

    def parameters(self) -> list[nn.Parameter]:
        return self.weights

    def gather(self) -> None:
        """Autograd has put the gradients in place."""

    def scatter(self) -> None:
        """The optimizer has changed the weights themselves."""

    @torch.no_grad()
    def finish(self) -> None:
        for weight, saved in zip(self.weights, self.saved, strict=True):
            weight.copy_(saved + (weight - saved).bfloat16())

    def save(self, folder: Path) -> None:
        """The whole fine-tuned checkpoint."""
        self.network.save_pretrained(folder)


class LowRankDelta:
    """A PEFT LoRA adapter; autograd and PEFT do all of the work."""

    def __init__(self, model: Any) -> None:
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=LORA_RANK,
            lora_alpha=2 * LORA_RANK,
            lora_dropout=0.0,
            target_modules=LORA_TARGETS,
        )
        self.adapted = get_peft_model(model, config)
        self.network = self.adapted.base_model.model

    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.adapted.parameters() if p.requires_grad]

    def gather(self) -> None:
        """Autograd has put the gradients in place."""

    def scatter(self) -> None:
        """The optimizer has changed the adapter itself."""

    @torch.no_grad()
    def finish(self) -> None:
        for parameter in self.parameters():
            parameter.copy_(parameter.bfloat16())

    def save(self, folder: Path) -> None:
        """The adapter alone."""
        self.adapted.save_pretrained(folder)
