"""TIES in mergekit's dialect (Yadav et al. 2023, arXiv 2306.01708, §4).

Each vector keeps `max(1, int(density · numel))` elements of every parameter; weights are applied
before the election, and the sum is divided by the sum of the agreeing weights.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from taskvectors.delta import Array, Delta
from taskvectors.merge.election import elect_and_merge, weighted
from taskvectors.merge.parts import Part, unstack
from taskvectors.sparsify import top_k


def merge(part: Part, parameters: Mapping[str, Any]) -> Delta | None:
    """parameters: density, lambda, normalize."""
    trimmed = trim(part, max(1, int(parameters["density"] * part.numel)))
    values = weighted(trimmed, part.weights)
    merged = elect_and_merge(values, part.weights, normalize=parameters["normalize"])
    return unstack(part, merged * np.float32(parameters["lambda"]))


def trim(part: Part, count: int) -> Array:
    """The stack's values, of each vector only its `count` largest magnitudes: float32 [K, U]."""
    index, values = part.stack.index, part.stack.values
    return np.stack([row * top_k(index, row, count) for row in values])
