"""The exact k-th largest magnitude of a stream, in two passes and 512 KiB.

Non-negative floats ascend as their bit patterns do, so counting the 16 high bits of |x| finds the
bucket of the k-th largest, and counting the 16 low bits within that bucket finds its value.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from taskvectors.delta import Array

_SIGN = np.uint32(0x7FFFFFFF)
_HIGH = np.uint32(16)
_LOW = np.uint32(0xFFFF)
_BUCKETS = 1 << 16

Stream: TypeAlias = Callable[[], Iterable[Array]]
"""Starts the same stream of flat float32 blocks anew."""


@dataclass(frozen=True)
class Cut:
    """Where the k largest nonzero magnitudes end.

    bits: of the k-th largest magnitude as float32; above: how many are larger; equal: how many are
    as large; wanted: k, or the number of nonzero ones where that is smaller. Zeros never count.
    """

    bits: int
    above: int
    equal: int
    wanted: int

    @property
    def magnitude(self) -> float:
        """The k-th largest magnitude; infinity when nothing is wanted."""
        return float(np.uint32(self.bits).view(np.float32)) if self.wanted else float("inf")


@dataclass
class Threshold:
    """Finds the cut for `k` of all blocks fed: `coarse` each, `refine` once, `fine` each, `cut`.

    Blocks are flat float32 without NaN; they may come from one tensor or from many.
    """

    k: int

    def __post_init__(self) -> None:
        self._counts = np.zeros(_BUCKETS, np.int64)
        self._zeros = 0
        self._bucket = self._above = self._wanted = 0

    def coarse(self, block: Array) -> None:
        """First pass."""
        bits = magnitude_bits(block)
        self._zeros += len(bits) - int(np.count_nonzero(bits))
        self._counts += np.bincount(bits >> _HIGH, minlength=_BUCKETS)

    def refine(self) -> None:
        """Between the passes: choose the bucket that holds the k-th largest."""
        self._counts[0] -= self._zeros
        self._wanted = min(self.k, int(self._counts.sum()))
        self._bucket, self._above = _locate(self._counts, self._wanted)
        self._counts[:] = 0

    def fine(self, block: Array) -> None:
        """Second pass."""
        bits = magnitude_bits(block)
        bits = bits[(bits >> _HIGH == self._bucket) & (bits != 0)]
        self._counts += np.bincount(bits & _LOW, minlength=_BUCKETS)

    def cut(self) -> Cut:
        """The answer, after both passes."""
        low, above = _locate(self._counts, self._wanted - self._above)
        equal = int(self._counts[low]) if self._wanted else 0
        return Cut(self._bucket << 16 | low, self._above + above, equal, self._wanted)


def find_cut(stream: Stream, k: int) -> Cut:
    """The cut for the `k` largest magnitudes of `stream`, which is read twice."""
    threshold = Threshold(k)
    for block in stream():
        threshold.coarse(block)
    threshold.refine()
    for block in stream():
        threshold.fine(block)
    return threshold.cut()


class Picker:
    """Applies a cut to the blocks of a stream, in its order.

    Of the entries as large as the k-th, `first` keeps those with the lowest places, `last` those
    with the highest, `all` every one (and so perhaps more than k).
    """

    def __init__(self, cut: Cut, equals: Literal["first", "last", "all"] = "first") -> None:
        taken = cut.equal if equals == "all" else cut.wanted - cut.above
        self._bits = np.uint32(cut.bits)
        self._is_empty = cut.wanted == 0
        self._skipped = cut.equal - taken if equals == "last" else 0
        self._left = taken

    def mask(self, block: Array) -> Array:
        """bool [n]: which entries of the next block (flat float32) are kept."""
        if self._is_empty:
            return np.zeros(len(block), np.bool_)
        bits = magnitude_bits(block)
        kept = bits > self._bits
        equal = np.flatnonzero(bits == self._bits)
        chosen = equal[self._skipped : self._skipped + self._left]
        self._skipped -= min(self._skipped, len(equal))
        self._left -= len(chosen)
        kept[chosen] = True
        return kept


def magnitude_bits(values: Array) -> Array:
    """uint32 patterns of |x| of float32; they ascend as the magnitudes do."""
    return np.asarray(np.ascontiguousarray(values).view(np.uint32) & _SIGN)


def _locate(counts: Array, wanted: int) -> tuple[int, int]:
    """The bucket that holds the `wanted`-th largest, and how many lie in higher ones."""
    if wanted <= 0:
        return 0, 0
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, wanted))
    above = int(from_top[place - 1]) if place else 0
    return len(counts) - 1 - place, above
