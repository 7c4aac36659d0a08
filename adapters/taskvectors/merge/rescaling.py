"""What the kept entries of a sparsified vector are multiplied by."""

import numpy as np

from taskvectors.delta import Array
from taskvectors.sparsify import ordered_sum

_LEAST = 1e-7


def keep_norm(kept: Array, whole: Array) -> Array:
    """`kept · Σ|whole| / Σ|kept|`, float32 [n], as mergekit's L1 rescaling.

    Unchanged where one of the sums is below 1e-7.
    """
    before, after = ordered_sum(np.abs(whole)), ordered_sum(np.abs(kept))
    if before < _LEAST or after < _LEAST:
        return kept
    return np.asarray(kept * np.float32(before / after))
