"""Keep the largest entries."""

import numpy as np

from taskvectors.delta import Array
from taskvectors.sparsify.threshold import Picker, find_cut


def top_k(index: Array, values: Array, k: int) -> Array:
    """bool [n]: the `k` largest magnitudes of a support; never a zero.

    index: int64 [n], ascending; values: float32 [n]. Among equal magnitudes the lowest index wins,
    so the result does not depend on the machine.
    """
    assert len(index) == len(values)
    if k >= len(values):
        return np.asarray(values != 0)
    return Picker(find_cut(lambda: [values], k)).mask(values)
