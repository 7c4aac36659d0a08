"""The hash of a million units at once; held against the scalar one in test_hashing.py."""

import numpy as np

from outfitter.control.experiments.hashing import NUM_BUCKETS

OFFSET, PRIME = np.uint32(0x811C9DC5), np.uint32(0x01000193)
MAX_DIGITS = 10


def buckets_of(seed: str, units: np.ndarray) -> np.ndarray:
    """The bucket of each unit, [n] of int64. units: ASCII, [n] of dtype S."""
    return _fnv(_digits(_fnv(units, _begin(seed)))).astype(np.int64) % NUM_BUCKETS


def _begin(seed: str) -> np.uint32:
    return np.uint32(_fnv(np.array([seed.encode()]))[0])


def _fnv(texts: np.ndarray, begin: np.uint32 = OFFSET) -> np.ndarray:
    """FNV-1a of each text, [n] of uint32; texts end at their first zero byte."""
    octets = texts.view(np.uint8).reshape(len(texts), -1)
    value = np.full(len(texts), begin, np.uint32)
    for column in octets.T:
        value = np.where(column > 0, (value ^ column) * PRIME, value)
    return value


def _digits(values: np.ndarray) -> np.ndarray:
    """Decimal texts without leading zeros, [n] of dtype S10."""
    powers = 10 ** np.arange(MAX_DIGITS - 1, -1, -1, dtype=np.int64)
    digits = (values.astype(np.int64)[:, None] // powers % 10 + ord("0")).astype(np.uint8)
    num_digits = np.maximum(1, (values.astype(np.int64)[:, None] >= powers).sum(axis=1))
    order = (np.arange(MAX_DIGITS) + MAX_DIGITS - num_digits[:, None]) % MAX_DIGITS
    moved = np.take_along_axis(digits, order, axis=1)
    moved[np.arange(MAX_DIGITS) >= num_digits[:, None]] = 0
    return np.ascontiguousarray(moved).view(f"S{MAX_DIGITS}").ravel()
