"""Task vectors made from seeded noise, kept as dense deltas beside the files made of them.

The dense tensors are drawn here and never pass through the library, so that a merge of them is
an independent oracle for what is served.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from taskvectors.format import write_vector
from taskvectors.vector import (
    BaseInfo,
    Delta,
    DenseDelta,
    LowRankDelta,
    SparseDelta,
    TaskVector,
)

SEED = 20261123
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Synthetic:
    """A task vector file and the dense float32 deltas that it stands for."""

    name: str
    path: Path
    deltas: dict[str, Tensor]


class Maker:
    """Draws task vectors for a model given by its parameters' shapes."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], fingerprint: str | None, folder: Path
    ) -> None:
        self._shapes = shapes
        self._base = BaseInfo("base", fingerprint)
        self._folder = folder

    def linears(self, layers: range | None = None) -> list[str]:
        """The linear weights, of all layers or of some."""
        names = [n for n in self._shapes if n.endswith(tuple(f"{leaf}.weight" for leaf in LINEAR))]
        return [n for n in names if layers is None or int(n.split(".")[2]) in layers]

    def low_rank(self, name: str, seed: int, rank: int, size: float) -> Synthetic:
        """Rank-`rank` deltas on every linear layer."""
        generator = _generator(seed)
        parts, deltas = {}, {}
        for parameter in self.linears():
            out, width = self._shapes[parameter]
            a = torch.randn(rank, width, generator=generator) / width**0.5
            b = torch.randn(out, rank, generator=generator) * size
            parts[parameter] = LowRankDelta((out, width), a.numpy(), b.numpy(), 0.5)
            deltas[parameter] = 0.5 * (b @ a)
        return self._save(name, parts, deltas)

    def sparse(
        self, name: str, seed: int, size: float, parameters: list[str] | None = None
    ) -> Synthetic:
        """One percent of the entries of linear weights, or of `parameters`."""
        generator = _generator(seed)
        parts, deltas = {}, {}
        for parameter in parameters or self.linears():
            parts[parameter], deltas[parameter] = self._sparse(parameter, size, generator)
        return self._save(name, parts, deltas)

    def full(self, name: str, seed: int, size: float) -> Synthetic:
        """Every parameter of the model: sparse matrices, dense norms and biases."""
        generator = _generator(seed)
        parts: dict[str, Delta] = {}
        deltas = {}
        for parameter, shape in self._shapes.items():
            if len(shape) == 2:
                parts[parameter], deltas[parameter] = self._sparse(parameter, size, generator)
            else:
                deltas[parameter] = torch.randn(shape, generator=generator) * 0.05
                parts[parameter] = DenseDelta(deltas[parameter].numpy())
        return self._save(name, parts, deltas)

    def dense(self, name: str, seed: int, size: float) -> Synthetic:
        """Dense deltas of every parameter of the model."""
        generator = _generator(seed)
        deltas = {
            parameter: torch.randn(shape, generator=generator) * size
            for parameter, shape in self._shapes.items()
        }
        parts: dict[str, Delta] = {p: DenseDelta(delta.numpy()) for p, delta in deltas.items()}
        return self._save(name, parts, deltas)

    def _sparse(
        self, parameter: str, size: float, generator: torch.Generator
    ) -> tuple[SparseDelta, Tensor]:
        shape = self._shapes[parameter]
        numel = shape[0] * shape[1]
        draws = torch.randint(numel, (max(1, numel // 100),), generator=generator)
        index = draws.unique()
        values = torch.randn(len(index), generator=generator) * size
        dense = torch.zeros(numel)
        dense[index] = values
        part = SparseDelta(shape, index.numpy().astype(np.int64), values.numpy())
        return part, dense.view(shape)

    def _save(self, name: str, parts: dict[str, Delta], deltas: dict[str, Tensor]) -> Synthetic:
        path = self._folder / f"{name}.safetensors"
        write_vector(TaskVector(base=self._base, parameters=parts), path)
        return Synthetic(name, path, deltas)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(SEED + seed)
