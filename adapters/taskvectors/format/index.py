"""The index of a sparse parameter in a file: gaps of some width, or a bitmap."""

from collections.abc import Iterator

import numpy as np

from taskvectors.delta import Array
from taskvectors.errors import InvalidIndex
from taskvectors.format.bitmap import encode_bitmap, iter_bitmap, num_bytes
from taskvectors.format.gaps import encode_gaps, iter_gaps, smallest_gaps

INDEX_ENCODINGS = ("auto", "u8", "u16", "u32", "bitmap")
"""What a person says for the encodings of an index; `auto` takes the smallest of the others."""


def encode_index(index: Array, numel: int, encoding: str = "auto") -> tuple[str, Array]:
    """The part (`idx` or `bits`) that holds `index`, and its array.

    index: int64 [n], strictly ascending below `numel`. Among equal sizes `auto` takes the narrowest
    gaps. Raises InvalidIndex when a gap does not fit the width.
    """
    if encoding not in INDEX_ENCODINGS:
        raise InvalidIndex(f"unsupported index {encoding!r}; choose {', '.join(INDEX_ENCODINGS)}")
    if encoding == "auto":
        encoding, size = smallest_gaps(index)
        if num_bytes(numel) < size:
            encoding = "bitmap"
    if encoding == "bitmap":
        return "bits", encode_bitmap(index, numel)
    return "idx", encode_gaps(index, encoding)


def decode_index(part: str, raw: Array, count: int, numel: int, name: str) -> Array:
    """The int64 [count] indices in `raw`, ascending below `numel`; raises InvalidIndex.

    Allocates 8 bytes for each of `count`, once the indices are counted, and a bounded chunk.
    """
    chunks = _iter_index(part, raw, count, numel, name)
    index = np.empty(count, np.int64)
    done = 0
    for chunk in chunks:
        index[done : done + len(chunk)] = chunk
        done += len(chunk)
    return index


def check_index(part: str, raw: Array, count: int, numel: int, name: str) -> None:
    """Raise InvalidIndex where decode_index would, without room for the index."""
    for _ in _iter_index(part, raw, count, numel, name):
        pass


def _iter_index(part: str, raw: Array, count: int, numel: int, name: str) -> Iterator[Array]:
    decode = iter_bitmap if part == "bits" else iter_gaps
    return decode(raw, count, numel, f"{name}.{part}")
