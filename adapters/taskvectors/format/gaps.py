"""Gap coding of sorted indices: `gap[k] = index[k] - index[k-1] - 1`, with `index[-1] = -1`.

U16 and U32 hold one gap each. U8 holds a gap as bytes to be added up: 255 means "and go on",
any other byte ends the gap.
"""

from collections.abc import Iterator

import numpy as np

from taskvectors.delta import Array
from taskvectors.errors import InvalidIndex

WIDTHS = {"u8": "U8", "u16": "U16", "u32": "U32"}
ESCAPE = 255
_LIMITS = {"u16": 0xFFFF, "u32": 0xFFFFFFFF}
_SIZES = {"u16": 2, "u32": 4}
_CHUNK = 1 << 20


def encode_gaps(index: Array, width: str = "auto") -> Array:
    """index: int64 [n], strictly ascending. Returns uint8 [m >= n], or uint16 or uint32 [n].

    `auto` takes the smallest. Raises InvalidIndex when a gap does not fit the width.
    """
    if width == "auto":
        width, _ = smallest_gaps(index)
    gaps = _gaps(index)
    largest = int(gaps.max(initial=0))
    if width == "u8":
        return _encode_u8(gaps)
    if width not in _LIMITS:
        raise InvalidIndex(f"unsupported index width {width!r}; choose auto, {', '.join(WIDTHS)}")
    if largest > _LIMITS[width]:
        raise InvalidIndex(f"a gap of {largest} does not fit {width}; choose auto")
    return gaps.astype(np.uint16 if width == "u16" else np.uint32)


def iter_gaps(raw: Array, count: int, numel: int, tensor: str) -> Iterator[Array]:
    """The `count` indices in `raw`, in chunks of bounded size; raises InvalidIndex.

    That there are so many is checked at once, that they are below `numel` before each chunk.
    """
    _check_count(raw, count, tensor)
    return _chunks(raw, numel, tensor)


def _chunks(raw: Array, numel: int, tensor: str) -> Iterator[Array]:
    start = 0
    for offset in range(0, len(raw), _CHUNK):
        chunk = raw[offset : offset + _CHUNK]
        # At most 2^20 gaps of 32 bits on top of a start below 2^49: uint64 cannot wrap.
        positions = np.cumsum(chunk, dtype=np.uint64)
        total = int(positions[-1])
        if raw.dtype == np.uint8:
            positions = positions[chunk != ESCAPE]
        positions += np.arange(start, start + len(positions), dtype=np.uint64)
        start += total + len(positions)
        if start > numel:
            raise InvalidIndex(f"{tensor} has index {start - 1}, outside of {numel} elements")
        yield positions


def _check_count(raw: Array, count: int, tensor: str) -> None:
    if raw.dtype != np.uint8:
        gaps = len(raw)
    elif len(raw) and raw[-1] == ESCAPE:
        raise InvalidIndex(f"{tensor} ends within a gap")
    else:
        gaps = int(np.count_nonzero(raw != ESCAPE))
    if gaps != count:
        raise InvalidIndex(f"{tensor} has {gaps} indices for {count} values")


def smallest_gaps(index: Array) -> tuple[str, int]:
    """The width with the fewest bytes for `index`, the narrowest among equals; and these bytes."""
    gaps = _gaps(index)
    largest = int(gaps.max(initial=0))
    sizes = {"u8": len(gaps) + int((gaps // ESCAPE).sum())}
    sizes |= {w: _SIZES[w] * len(gaps) for w, limit in _LIMITS.items() if largest <= limit}
    width = min(sizes, key=sizes.__getitem__)
    return width, sizes[width]


def _gaps(index: Array) -> Array:
    return np.diff(index, prepend=np.int64(-1)) - 1


def _encode_u8(gaps: Array) -> Array:
    escapes, rest = np.divmod(gaps, ESCAPE)
    ends = np.cumsum(escapes + 1) - 1
    raw = np.full(int(ends[-1]) + 1 if len(ends) else 0, ESCAPE, np.uint8)
    raw[ends] = rest
    return raw
