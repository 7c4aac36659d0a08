"""Choosing which entries of a difference to keep."""

import numpy as np

from taskvectors.delta import Array


def top_k(difference: Array, density: float) -> Array:
    """Sorted int64 indices of the k largest magnitudes of a flat float32 [numel] array.

    `k = max(1, round(density * numel))`, and never more than there are nonzero entries. Among
    equal magnitudes the lowest index wins, so the result does not depend on the machine.
    """
    magnitude = np.abs(difference)
    wanted = max(1, round(density * len(magnitude)))
    wanted = min(wanted, int(np.count_nonzero(magnitude)))
    if wanted == 0:
        return np.empty(0, np.int64)
    place = len(magnitude) - wanted
    threshold = np.partition(magnitude, place)[place]
    above = np.flatnonzero(magnitude > threshold)
    equal = np.flatnonzero(magnitude == threshold)[: wanted - len(above)]
    return np.sort(np.concatenate([above, equal])).astype(np.int64, copy=False)
