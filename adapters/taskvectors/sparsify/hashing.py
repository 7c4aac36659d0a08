"""Reproducible random numbers that belong to elements, not to an order of drawing.

The number of an element depends on (seed, key, parameter name, index) alone: whoever holds any
slice of a tensor, in blocks of any size, on any machine, draws the same ones.
"""

import hashlib

import numpy as np

from taskvectors.container.strict_json import dumps
from taskvectors.delta import Array

_STEP = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = np.uint64(31)
_UNUSED_BITS = np.uint64(11)  # a float64 holds 53 of the 64
_RESOLUTION = 2.0**-53


def uniform(key: str, seed: int, name: str, index: Array) -> Array:
    """float64 [n] in [0, 1): one number for each element `index`: int64 [n] of parameter `name`.

    SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators") as a
    counter: element i of the sequence whose start is the first 8 bytes of
    sha256(`[seed,key,name]` as compact JSON), little-endian.
    """
    state = (index.astype(np.uint64) + np.uint64(1)) * _STEP
    state += np.uint64(_start(key, seed, name))
    for shift, factor in _ROUNDS:
        state ^= state >> np.uint64(shift)
        state *= np.uint64(factor)
    state ^= state >> _LAST_SHIFT
    return np.asarray((state >> _UNUSED_BITS).astype(np.float64) * _RESOLUTION)


def _start(key: str, seed: int, name: str) -> int:
    text = dumps([seed, key, name]).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")
