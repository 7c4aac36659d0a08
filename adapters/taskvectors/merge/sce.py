"""SCE (Wan et al. 2024, arXiv 2408.07990, §3) in mergekit's dialect.

Select the elements of highest variance, Calculate a vector's weight from its energy, Erase
minority signs. Vectors weigh the same where Σₖ mean(τₖ²) < 1e-6, which is how most fine-tunes of
language models come out: the mean counts every element of the parameter.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from taskvectors.delta import Array, Delta
from taskvectors.merge.election import agreeing, total, weighted
from taskvectors.merge.parts import Part, unstack
from taskvectors.sparsify import ordered_sum, top_k

_LEAST_ENERGY = 1e-6
_LEAST_DIVISOR = np.float32(1e-6)


def merge(part: Part, parameters: Mapping[str, Any]) -> Delta | None:
    """parameters: select_topk."""
    values = part.stack.values
    if parameters["select_topk"] < 1:
        values = values * _selected(part.stack.index, values, parameters["select_topk"])
    weights = weighted(agreeing(values).astype(np.float32), _shares(values, part.numel))
    merged = total(values * weights) / np.maximum(total(weights), _LEAST_DIVISOR)
    return unstack(part, merged)


def _selected(index: Array, values: Array, share: float) -> Array:
    """bool [U]: the `share` of the elements with any variance, highest variance first."""
    count = np.float64(len(values))
    mean = sum(row.astype(np.float64) for row in values) / count
    variance = sum((row - mean) ** 2 for row in values) / count
    rounded: Array = np.asarray(variance).astype(np.float32)
    num_varied = np.float32(np.count_nonzero(rounded))
    return top_k(index, rounded, int(num_varied * np.float32(share)))


def _shares(values: Array, numel: int) -> tuple[float, ...]:
    """Each vector's part of the energy `mean(τ²)` of all."""
    energies = [ordered_sum(np.square(row)) / max(1, numel) for row in values]
    whole = sum(energies)
    if whole < _LEAST_ENERGY:
        return (1 / len(energies),) * len(energies)
    return tuple(energy / whole for energy in energies)
