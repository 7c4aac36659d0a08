"""DELLA (Deep et al. 2024, arXiv 2406.11617, §3) with mergekit's weighted election.

Each entry is kept with its own probability `p = density ± epsilon`, linear in the rank of its
magnitude within its row (all that follows the first dimension; a vector is one row), and divided
by it as in the paper. mergekit instead brings each vector back to its L1 norm: `rescale="l1"`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from taskvectors.delta import Array, Delta
from taskvectors.merge.election import elect_and_merge, weighted
from taskvectors.merge.parts import Part, unstack
from taskvectors.merge.rescaling import keep_norm
from taskvectors.sparsify import della


def merge(part: Part, parameters: Mapping[str, Any]) -> Delta | None:
    """parameters: density, epsilon, lambda, normalize, rescale, seed."""
    rows = zip(part.keys, part.stack.values, strict=True)
    dropped = np.stack([_drop(part, key, row, parameters) for key, row in rows])
    values = weighted(dropped, part.weights)
    merged = elect_and_merge(values, part.weights, normalize=parameters["normalize"])
    return unstack(part, merged * np.float32(parameters["lambda"]))


def _drop(part: Part, key: str, row: Array, parameters: Mapping[str, Any]) -> Array:
    density, epsilon, seed = (parameters[name] for name in ("density", "epsilon", "seed"))
    own = np.flatnonzero(row)
    mask, probabilities = della(
        part.stack.index[own], row[own], part.shape, density, epsilon, key, seed, part.name
    )
    kept = own[mask]
    result = np.zeros_like(row)
    result[kept] = row[kept]
    if parameters["rescale"] == "probability":
        result[kept] /= probabilities[mask].astype(np.float32)
    elif parameters["rescale"] == "l1" and density < 1:
        result[kept] = keep_norm(row[kept], row[own])
    return result
