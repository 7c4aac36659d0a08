"""Model Breadcrumbs: drop the outliers, then the small (Davari & Belilovsky, arXiv 2312.06795)."""

import numpy as np

from taskvectors.delta import Array
from taskvectors.sparsify.threshold import Cut, Picker, Stream, find_cut


def window(numel: int, density: float, gamma: float) -> tuple[int, int]:
    """(begin, end) of the kept ranks among `numel` magnitudes in ascending order.

    The semantics of mergekit's `magnitude_outliers`: the top `int(gamma · numel)` are dropped and
    the next `int(density · numel)` kept; where fewer are left, fewer outliers are dropped.
    """
    if density >= 1:
        return 0, numel
    kept = int(density * numel)
    begin = max(0, numel - kept - int(gamma * numel))
    return begin, begin + kept


class BandPicker:
    """Applies a window of ranks to a stream that is read again: the top of it less its outliers."""

    def __init__(self, stream: Stream, numel: int, density: float, gamma: float) -> None:
        begin, end = window(numel, density, gamma)
        self._outliers = Picker(_cut(stream, numel - end), "last")
        self._top = Picker(_cut(stream, numel - begin), "last")

    def mask(self, block: Array) -> Array:
        """bool [n]: which entries of the next block (flat float32) are kept."""
        return np.asarray(self._top.mask(block) & ~self._outliers.mask(block))


def breadcrumbs(index: Array, values: Array, numel: int, density: float, gamma: float) -> Array:
    """bool [n]: the entries of a support whose rank lies in the window; never a zero.

    index: int64 [n], ascending, in a parameter of `numel` elements; values: float32 [n]. Elements
    off the support are zeros and rank lowest; among equal magnitudes the lowest index ranks lower.
    """
    assert len(index) == len(values)
    return BandPicker(lambda: [values], numel, density, gamma).mask(values)


def _cut(stream: Stream, k: int) -> Cut:
    return find_cut(stream, k) if k else Cut(0, 0, 0, 0)
