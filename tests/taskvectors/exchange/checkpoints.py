"""A tiny Llama, fine-tuned copies of it, and their task vector files, exact in every dtype."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM

from taskvectors.checkpoint import Checkpoint, fingerprint
from taskvectors.delta import Array, DenseDelta, SparseDelta
from taskvectors.format import write_vector
from taskvectors.vector import BaseInfo, TaskVector
from tests.taskvectors.tiny_llama import tiny_config

GRID = 64
"""Weights are multiples of 1/64 below 1, so that bf16 holds them."""


def save_base(folder: Path, dtype: torch.dtype = torch.float32, *, tied: bool = False) -> Path:
    """A base whose weights are on the grid, as transformers saves it."""
    model = LlamaForCausalLM(tiny_config(tied=tied))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            steps = torch.randint(-GRID, GRID, parameter.shape, generator=generator)
            parameter.copy_(steps / GRID)
    model.to(dtype).save_pretrained(folder)
    return folder


def tune(base: Path, seed: int, density: float = 0.3, *, coarse: bool = False) -> dict[str, Array]:
    """Fine-tuned weights in float32: some entries of matrices differ, and all of the norms'.

    Differences have distinct magnitudes, multiples of 1/1024, so that no threshold is ambiguous;
    coarse ones are multiples of 1/64, so that bf16 holds the sums.
    """
    rng = np.random.default_rng(seed)
    checkpoint = Checkpoint.open(base)
    tuned = {}
    for name in checkpoint.names:
        weights = checkpoint.read(name).astype(np.float32)
        magnitude = rng.permutation(weights.size).reshape(weights.shape) + 1
        steps = magnitude % 32 / GRID if coarse else magnitude / 1024
        steps *= rng.choice([-1, 1], weights.shape)
        if weights.ndim > 1:
            steps *= rng.random(weights.shape) < density
        tuned[name] = weights + steps.astype(np.float32)
    return tuned


def save_vector(base: Path, tuned: Mapping[str, Array], path: Path) -> Path:
    """The exact difference as a task vector file."""
    checkpoint = Checkpoint.open(base)
    parameters: dict[str, DenseDelta | SparseDelta] = {}
    for name, weights in tuned.items():
        difference = weights - checkpoint.read(name).astype(np.float32)
        if difference.ndim == 1:
            parameters[name] = DenseDelta(difference)
        else:
            index = np.flatnonzero(difference)
            parameters[name] = SparseDelta(difference.shape, index, difference.flat[index])
    info = BaseInfo(base.name, fingerprint(checkpoint))
    write_vector(TaskVector(info, parameters, {"license": "MIT"}), path)
    return path


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    """What transformers loads from a folder, in the folder's own dtype."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype="auto")
    return dict(model.state_dict())
