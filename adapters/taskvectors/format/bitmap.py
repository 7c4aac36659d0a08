"""Bitmaps of sorted indices and of signs: bit k of a tensor is bit `k % 8` of byte `k // 8`.

The bits that pad the last byte are zero.
"""

import numpy as np

from taskvectors.delta import Array
from taskvectors.errors import InvalidIndex

_CHUNK = 1 << 17


def num_bytes(bits: int) -> int:
    """Bytes that hold so many bits."""
    return -(-bits // 8)


def encode_bitmap(index: Array, numel: int) -> Array:
    """index: int64 [n], strictly ascending below `numel`. Returns uint8 [ceil(numel / 8)]."""
    raw = np.zeros(num_bytes(numel), np.uint8)
    np.bitwise_or.at(raw, index >> 3, np.left_shift(1, index & 7).astype(np.uint8))
    return raw


def decode_bitmap(raw: Array, count: int, numel: int, name: str) -> Array:
    """The int64 [count] positions of the set bits of `raw`; raises InvalidIndex.

    Allocates 8 bytes for each of `count`, once the bits are counted, and a bounded chunk.
    """
    if has_padding(raw, numel):
        raise InvalidIndex(f"{name}.bits has a bit set beyond its {numel} elements")
    if (found := _popcount(raw)) != count:
        raise InvalidIndex(f"{name} has {found} indices for {count} values")
    index = np.empty(count, np.int64)
    done = 0
    for offset in range(0, len(raw), _CHUNK):
        bits = np.unpackbits(raw[offset : offset + _CHUNK], bitorder="little")
        positions = np.flatnonzero(bits)
        index[done : done + len(positions)] = positions + 8 * offset
        done += len(positions)
    return index


def has_padding(raw: Array, bits: int) -> bool:
    """True where a bit is set after the first `bits`, in the last byte of `raw`."""
    return bool(bits % 8 and raw[-1] >> bits % 8)


def _popcount(raw: Array) -> int:
    chunks = (raw[offset : offset + _CHUNK] for offset in range(0, len(raw), _CHUNK))
    return sum(int(np.bitwise_count(chunk).sum(dtype=np.int64)) for chunk in chunks)
