"""Packed rows: how a CPU holds one sparse delta, about 3.3 bytes for a nonzero of a 1 % delta.

Each row is a run of entries, each entry a position and a value. Positions are columns of 16 bits,
or, where that is smaller, increments of 8 bits: the column less the one before it in the row, which
begins at -1. An increment above 255 takes entries of increment 255 and value 0 first, so that a
product needs no branch for them. Runs are sorted by length, longest first: the processor then
foresees the end of each, and two of a length are computed side by side.
"""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

MOST = 65535
"""Most rows, and most columns: both are named in 16 bits."""
REACH = 255
BF16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True, eq=False)
class PackedRows:
    """A sparse matrix [rows, width].

    order: uint16 [rows], the row of each run. lengths: int32 [G, 2], a length, and how many runs
    in turn have it. position: [entries], uint8 increments or uint16 columns. value: [entries],
    uint16 bits of bfloat16, or float32.
    """

    shape: tuple[int, int]
    order: Array
    lengths: Array
    position: Array
    value: Array

    @classmethod
    def from_flat(cls, shape: tuple[int, int], index: Array, values: Array) -> "PackedRows":
        """From ascending row-major positions `index` int64 [nnz] and `values` [nnz].

        bfloat16 values keep their bits; all others are held as float32.
        """
        assert max(shape) <= MOST, f"{list(shape)}; at most {MOST} rows and columns can be packed"
        rows, columns = np.divmod(index, shape[1])
        wide = values.view(np.uint16) if values.dtype == BF16 else values.astype(np.float32)
        steps = np.diff(columns, prepend=-1)
        first = np.flatnonzero(np.diff(rows, prepend=-1))
        steps[first] = columns[first] + 1
        skips = (steps - 1) // REACH
        entries = len(index) + int(skips.sum())
        if entries * (1 + wide.itemsize) > len(index) * (2 + wide.itemsize):
            counts = np.bincount(rows, minlength=shape[0])
            return cls._sorted(shape, counts, columns.astype(np.uint16), wide)
        counts = np.bincount(np.repeat(rows, 1 + skips), minlength=shape[0])
        where = np.arange(len(index)) + np.cumsum(skips)
        position = np.full(entries, REACH, np.uint8)
        position[where] = steps - REACH * skips
        value = np.zeros(entries, wide.dtype)
        value[where] = wide
        return cls._sorted(shape, counts, position, value)

    @classmethod
    def _sorted(
        cls, shape: tuple[int, int], counts: Array, position: Array, value: Array
    ) -> "PackedRows":
        """From runs in the order of the rows."""
        order = np.argsort(-counts, kind="stable")
        length, number = np.unique(-counts, return_counts=True)
        lengths = np.stack([-length, number], axis=1).astype(np.int32)
        starts = (np.cumsum(counts) - counts)[order]
        taken = counts[order]
        source = np.repeat(starts - (np.cumsum(taken) - taken), taken) + np.arange(len(value))
        return cls(shape, order.astype(np.uint16), lengths, position[source], value[source])

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = (self.order, self.lengths, self.position, self.value)
        return sum(array.nbytes for array in arrays)

    def to_dense(self) -> npt.NDArray[np.float32]:
        """float32 [rows, width]."""
        dense = np.zeros(self.shape, np.float32)
        counts = np.repeat(self.lengths[:, 0], self.lengths[:, 1])
        columns = self.position.astype(np.int64)
        if self.position.dtype == np.uint8:
            total = np.cumsum(columns)
            begin = np.cumsum(counts) - counts
            before = np.concatenate([[0], total])[begin]
            columns = total - np.repeat(before, counts) - 1
        is_bf16 = self.value.dtype == np.uint16
        values = self.value.view(BF16) if is_bf16 else self.value
        np.add.at(dense, (np.repeat(self.order, counts), columns), values.astype(np.float32))
        return dense


def packed_bytes(rows: int, nnz: int, value_bytes: int, entries: int) -> int:
    """Most bytes of a packed delta; entries: at most so many with increments of 8 bits."""
    lengths = 8 * (math.isqrt(2 * entries) + 2)
    return 2 * rows + lengths + min(entries * (1 + value_bytes), nnz * (2 + value_bytes))
