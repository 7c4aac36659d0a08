"""Model Stock (Jang et al. 2024, arXiv 2403.19522, §4), as mergekit has it.

The mean of the vectors times `t = K cos θ / (1 + (K − 1) cos θ)`, with the mean cosine of all pairs
(clipped norms, and t = 0 where the denominator vanishes, as mergekit). Sparse vectors stay sparse.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from taskvectors.delta import Array, Delta
from taskvectors.merge.angles import Along, Groups
from taskvectors.merge.election import total, weighted
from taskvectors.merge.parts import Part, unstack

_LEAST_PRODUCT = 1e-6
_SINGULAR = 1e-6


def merge(part: Part, parameters: Mapping[str, Any]) -> Delta | None:
    """parameters: filter_wise."""
    along: Along = "rows" if parameters["filter_wise"] else "all"
    groups = Groups(part.stack.index, part.shape, along)
    values = weighted(part.stack.values, part.weights)
    cosine, count = _mean_cosine(values, groups), len(values)
    denominator = 1 + (count - 1) * cosine
    singular = np.abs(denominator) < _SINGULAR
    share = np.where(singular, 0.0, count * cosine / np.where(singular, 1.0, denominator))
    return unstack(part, groups.spread(share / count, total(values)))


def _mean_cosine(values: Array, groups: Groups) -> Array:
    """float64 [groups]: over all pairs of the K rows of `values`."""
    norms = [groups.norm(row) for row in values]
    cosines = [
        (groups.inner(values[i], values[k]) / (norms[i] * norms[k]).clip(_LEAST_PRODUCT)).clip(
            -1, 1
        )
        for i, k in combinations(range(len(values)), 2)
    ]
    return np.asarray(np.mean(cosines, axis=0))
