"""DARE: drop entries at random (Yu et al. 2023, arXiv 2311.03099, §3.2)."""

import numpy as np

from taskvectors.delta import Array
from taskvectors.sparsify.hashing import uniform


def dare(index: Array, values: Array, density: float, key: str, seed: int, name: str) -> Array:
    """bool [n]: each nonzero entry of a support is kept with probability `density`.

    index: int64 [n], ascending; values: float32 [n], before any rescaling (the paper divides what
    is kept by `density`). key: tells apart the draws of several vectors under one seed.
    """
    return np.asarray((uniform(key, seed, name, index) < density) & (values != 0))
