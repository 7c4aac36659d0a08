"""Blocks: what a CPU holds for each vector of a layer, and the numbers its compiled code reads."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from taskvectors.packed import PackedRows

Array: TypeAlias = npt.NDArray[Any]

COLUMN, PART, START, ROWS, WIDTH, KIND, FIRST, SECOND, THIRD, FOURTH, SIZE, GROUPS = range(12)
"""Fields of a block. Four addresses: order, lengths, position and value; or two: a and b. SIZE: of
entries, or of ranks."""
NARROW_BF16, WIDE_BF16, NARROW_F32, WIDE_F32, LOW_RANK_BF16, LOW_RANK_F32 = range(6)
"""Kinds of a block: increments or columns, and the values' dtype."""
FIELDS = GROUPS + 1
MOST_LANES = 16


@dataclass(frozen=True, eq=False)
class RankPair:
    """A low-rank delta, scale · bᵀ a. a: [R, in]; b: [R, out]; both bfloat16 bits or float32."""

    a: Array
    b: Array
    scale: float

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.a.nbytes + self.b.nbytes


@dataclass(frozen=True, eq=False)
class Block:
    """One vector's delta of one part of a layer. start: the part's first output row."""

    column: int
    part: int
    start: int
    data: PackedRows | RankPair


class LayerTable:
    """The blocks of one layer as numbers that the compiled code reads; immutable.

    The arrays that the addresses lead to live as long as the table.
    """

    def __init__(self, blocks: Sequence[Block] = ()) -> None:
        self.blocks = tuple(blocks)
        self.fields = np.array([_fields(block) for block in blocks], np.int64).reshape(-1, FIELDS)
        scales = [b.data.scale if isinstance(b.data, RankPair) else 1.0 for b in blocks]
        self.scales = np.array(scales, np.float32)
        self.scratch = max(map(_scratch_of, blocks), default=0)
        where = [self.fields.ctypes.data, len(self.fields), self.scales.ctypes.data]
        self._where = np.array(where, np.int64)
        self.address: int = self._where.ctypes.data
        """Of int64 [3], which the compiled code reads: passing arrays takes it microseconds."""

    def plus(self, blocks: Sequence[Block]) -> "LayerTable":
        """These blocks and more."""
        return LayerTable((*self.blocks, *blocks))

    def without(self, column: int) -> "LayerTable":
        """These blocks less those of one vector."""
        return LayerTable([block for block in self.blocks if block.column != column])


@dataclass(frozen=True, eq=False)
class TokenGroups:
    """Which tokens use which vector.

    bounds: int32 [K, 2], where the tokens of each column begin and end. tokens: int32 [E].
    coef: float32 [P or 1, E], the weight of each for each part.
    """

    bounds: Array
    tokens: Array
    coef: Array

    @functools.cached_property
    def address(self) -> int:
        """Of int64 [6], which the compiled code reads."""
        found: int = self._where.ctypes.data
        return found

    @functools.cached_property
    def _where(self) -> Array:
        arrays = (self.bounds, self.tokens, self.coef)
        assert [array.dtype for array in arrays] == [np.int32, np.int32, np.float32]
        assert all(array.flags.c_contiguous for array in arrays)
        lengths = (len(self.bounds), len(self.tokens), len(self.coef))
        pairs = zip((array.ctypes.data for array in arrays), lengths, strict=True)
        return np.array(list(pairs), np.int64)


def _fields(block: Block) -> list[int]:
    data = block.data
    if isinstance(data, RankPair):
        kind = LOW_RANK_BF16 if data.a.dtype == np.uint16 else LOW_RANK_F32
        (rank, width), rows = data.a.shape, data.b.shape[1]
        assert data.a.dtype == data.b.dtype
        assert data.a.flags.c_contiguous
        assert data.b.flags.c_contiguous
        where = [data.a.ctypes.data, data.b.ctypes.data, 0, 0, rank, 0]
    else:
        is_bf16, is_narrow = data.value.dtype == np.uint16, data.position.dtype == np.uint8
        kind = {
            (True, True): NARROW_BF16,
            (True, False): WIDE_BF16,
            (False, True): NARROW_F32,
            (False, False): WIDE_F32,
        }[is_bf16, is_narrow]
        rows, width = data.shape
        arrays = (data.order, data.lengths, data.position, data.value)
        where = [array.ctypes.data for array in arrays]
        where += [len(data.position), len(data.lengths)]
    return [block.column, block.part, block.start, rows, width, kind, *where]


def _scratch_of(block: Block) -> int:
    """float32 values that the compiled code needs for a block."""
    ranks = 0
    if isinstance(block.data, RankPair):
        ranks, width = block.data.a.shape
        rows = int(block.data.b.shape[1])
    else:
        rows, width = block.data.shape
    return int(MOST_LANES * (1 + width + rows + ranks) + ranks * (width + rows) + rows)
