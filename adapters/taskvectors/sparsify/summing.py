"""Sums that are the same on every machine."""

import numpy as np

from taskvectors.delta import Array

_CHUNK = 1 << 20


def ordered_sum(values: Array) -> float:
    """Σ values in float64, from the first to the last; flat [n] of any real dtype.

    Library sums add in an order that depends on the processor; this one never does.
    """
    total = 0.0
    for begin in range(0, len(values), _CHUNK):
        chunk = values[begin : begin + _CHUNK].astype(np.float64)
        chunk[0] += total
        total = float(np.cumsum(chunk, out=chunk)[-1])
    return total
