"""Bitmaps of sorted indices and of signs: bit k of a tensor is bit `k % 8` of byte `k // 8`.

The bits that pad the last byte are zero.
"""

from collections.abc import Iterator

import numpy as np

from taskvectors.delta import Array
from taskvectors.errors import InvalidIndex

_CHUNK = 1 << 14


def num_bytes(bits: int) -> int:
    """Bytes that hold so many bits."""
    return -(-bits // 8)


def encode_bitmap(index: Array, numel: int) -> Array:
    """index: int64 [n], strictly ascending below `numel`. Returns uint8 [ceil(numel / 8)]."""
    bits = np.zeros(numel, np.bool_)
    bits[index] = True
    return np.packbits(bits, bitorder="little")


def iter_bitmap(raw: Array, count: int, numel: int, tensor: str) -> Iterator[Array]:
    """The positions of the set bits of `raw`, in chunks of int64; raises InvalidIndex.

    That there are `count`, all of them below `numel`, is checked at once.
    """
    if has_padding(raw, numel):
        raise InvalidIndex(f"{tensor} has a bit set beyond its {numel} elements")
    if (found := _popcount(raw)) != count:
        raise InvalidIndex(f"{tensor} has {found} indices for {count} values")
    return _chunks(raw)


def _chunks(raw: Array) -> Iterator[Array]:
    for offset in range(0, len(raw), _CHUNK):
        bits = np.unpackbits(raw[offset : offset + _CHUNK], bitorder="little")
        yield np.flatnonzero(bits) + 8 * offset


def has_padding(raw: Array, bits: int) -> bool:
    """True where a bit is set after the first `bits`, in the last byte of `raw`."""
    return bool(bits % 8 and raw[-1] >> bits % 8)


def _popcount(raw: Array) -> int:
    chunks = (raw[offset : offset + _CHUNK] for offset in range(0, len(raw), _CHUNK))
    return sum(int(np.bitwise_count(chunk).sum(dtype=np.int64)) for chunk in chunks)
