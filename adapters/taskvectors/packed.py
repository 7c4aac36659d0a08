"""Packed rows: how a CPU holds one sparse delta, about 3.3 bytes for a nonzero of a 1 % delta.

Each row is a run of entries, each entry a position and a value. Positions are columns of 16 bits,
or, where that is smaller, increments of 8 bits: the column less the one before it in the row, which
begins at -1. An increment above 255 takes entries of increment 255 and value 0 first, so that a
product needs no branch for them.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

MAX_WIDTH = 65535
"""Most columns: a row counts its entries, and names its columns, in 16 bits."""
REACH = 255
BF16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True, eq=False)
class PackedRows:
    """A sparse matrix [rows, width].

    counts: uint16 [rows], entries of each row. position: [entries], uint8 increments or uint16
    columns. value: [entries], uint16 bits of bfloat16, or float32.
    """

    shape: tuple[int, int]
    counts: Array
    position: Array
    value: Array

    @classmethod
    def from_flat(cls, shape: tuple[int, int], index: Array, values: Array) -> "PackedRows":
        """From ascending row-major positions `index` int64 [nnz] and `values` [nnz].

        bfloat16 values keep their bits; all others are held as float32.
        """
        assert shape[1] <= MAX_WIDTH, f"{shape[1]} columns; at most {MAX_WIDTH} can be packed"
        rows, columns = np.divmod(index, shape[1])
        wide = values.view(np.uint16) if values.dtype == BF16 else values.astype(np.float32)
        steps = np.diff(columns, prepend=-1)
        first = np.flatnonzero(np.diff(rows, prepend=-1))
        steps[first] = columns[first] + 1
        skips = (steps - 1) // REACH
        entries = len(index) + int(skips.sum())
        if entries * (1 + wide.itemsize) > len(index) * (2 + wide.itemsize):
            counts = np.bincount(rows, minlength=shape[0]).astype(np.uint16)
            return cls(shape, counts, columns.astype(np.uint16), wide.copy())
        counts = np.bincount(rows, weights=1 + skips, minlength=shape[0]).astype(np.uint16)
        where = np.arange(len(index)) + np.cumsum(skips)
        position = np.full(entries, REACH, np.uint8)
        position[where] = steps - REACH * skips
        value = np.zeros(entries, wide.dtype)
        value[where] = wide
        return cls(shape, counts, position, value)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.counts.nbytes + self.position.nbytes + self.value.nbytes

    def to_dense(self) -> npt.NDArray[np.float32]:
        """float32 [rows, width]."""
        dense = np.zeros(self.shape, np.float32)
        rows = np.repeat(np.arange(self.shape[0]), self.counts)
        columns = self.position.astype(np.int64)
        if self.position.dtype == np.uint8:
            total = np.cumsum(columns)
            ends = np.cumsum(self.counts, dtype=np.int64)
            before = np.concatenate([[0], total])[ends - self.counts]
            columns = total - before[rows] - 1
        is_bf16 = self.value.dtype == np.uint16
        values = self.value.view(BF16) if is_bf16 else self.value
        np.add.at(dense, (rows, columns), values.astype(np.float32))
        return dense


def packed_bytes(rows: int, nnz: int, value_bytes: int, entries: int) -> int:
    """Most bytes of a packed delta; entries: at most so many with increments of 8 bits."""
    return 2 * rows + min(entries * (1 + value_bytes), nnz * (2 + value_bytes))
