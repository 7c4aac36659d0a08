"""Choosing which entries of a difference to keep."""

import numpy as np

from taskvectors.delta import Array


def top_k(difference: Array, density: float) -> Array:
    """Sorted int64 indices of the k largest magnitudes of a flat float32 [numel] array.

    `k = max(1, round(density * numel))`, and never more than there are nonzero entries. Among
    equal magnitudes the lowest index wins, so the result does not depend on the machine.
    """
    magnitude = np.abs(difference)
    changed = np.flatnonzero(magnitude)
    wanted = max(1, round(density * len(magnitude)))
    if wanted >= len(changed):
        return changed
    magnitude = magnitude[changed]
    place = len(magnitude) - wanted
    threshold = np.partition(magnitude, place)[place]
    above = np.flatnonzero(magnitude > threshold)
    equal = np.flatnonzero(magnitude == threshold)[: wanted - len(above)]
    kept: Array = changed[np.sort(np.concatenate([above, equal]))]
    return kept
