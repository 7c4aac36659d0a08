"""What the pool holds for one layer: every resident vector's part of that layer.

`Deltas` objects are immutable. The loader thread builds a new one and the layer swaps it in with
one assignment, so a step sees either the old or the new and never something between.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor

from taskvectors.kernels.torch_ops import SparseMatrix

Value = TypeVar("Value")


@dataclass(frozen=True)
class LowRankBlock:
    """The ranks of all vectors on one part of a layer.

    part: position of the part in its layer. columns: [R] int64, the column that owns each rank.
    a: [R, in]. b: [R, out of the part], the scale folded in.
    """

    part: int
    columns: Tensor
    a: Tensor
    b: Tensor

    def without(self, column: int) -> "LowRankBlock":
        """The block less the ranks of `column`."""
        keep = self.columns != column
        return LowRankBlock(self.part, self.columns[keep], self.a[keep], self.b[keep])

    def joined(self, other: "LowRankBlock") -> "LowRankBlock":
        """Both blocks' ranks in one."""
        assert self.part == other.part
        pairs = ((self.columns, other.columns), (self.a, other.a), (self.b, other.b))
        columns, a, b = (torch.cat(pair) for pair in pairs)
        return LowRankBlock(self.part, columns, a, b)


@dataclass(frozen=True)
class LowRankPack:
    """All blocks of a layer with their A in one matrix, so that x is read once.

    a: [ΣR, in]; columns: [ΣR]; the blocks' `a` and `columns` are views of them, in order.
    """

    a: Tensor
    columns: Tensor
    blocks: tuple[LowRankBlock, ...]

    @classmethod
    def of(cls, blocks: Iterable[LowRankBlock]) -> "LowRankPack | None":
        """Pack `blocks`; None when no rank is left."""
        kept = [block for block in blocks if len(block.columns)]
        if not kept:
            return None
        a = torch.cat([block.a for block in kept])
        columns = torch.cat([block.columns for block in kept])
        views, start = [], 0
        for block in kept:
            stop = start + len(block.columns)
            views.append(replace(block, a=a[start:stop], columns=columns[start:stop]))
            start = stop
        return cls(a, columns, tuple(views))


@dataclass(frozen=True)
class Deltas:
    """One layer's resident deltas by column.

    low_rank: all low-rank vectors. sparse: [out, in] matrices. dense: [out, in], or [dim] for a
    norm. bias: [out].
    """

    low_rank: LowRankPack | None = None
    sparse: Mapping[int, SparseMatrix] = field(default_factory=lambda: MappingProxyType({}))
    dense: Mapping[int, Tensor] = field(default_factory=lambda: MappingProxyType({}))
    bias: Mapping[int, Tensor] = field(default_factory=lambda: MappingProxyType({}))

    def with_vector(self, column: int, staged: "StagedDeltas") -> "Deltas":
        """These and one more vector."""
        blocks = {block.part: block for block in self.low_rank.blocks} if self.low_rank else {}
        for block in staged.low_rank:
            known = blocks.get(block.part)
            blocks[block.part] = known.joined(block) if known else block
        return Deltas(
            low_rank=LowRankPack.of(blocks[part] for part in sorted(blocks)),
            sparse=_plus(self.sparse, column, staged.sparse),
            dense=_plus(self.dense, column, staged.dense),
            bias=_plus(self.bias, column, staged.bias),
        )

    def without_vector(self, column: int) -> "Deltas":
        """These less one vector."""
        low_rank = self.low_rank
        if low_rank is not None and bool((low_rank.columns == column).any()):
            low_rank = LowRankPack.of(block.without(column) for block in low_rank.blocks)
        return Deltas(
            low_rank=low_rank,
            sparse=_minus(self.sparse, column),
            dense=_minus(self.dense, column),
            bias=_minus(self.bias, column),
        )


@dataclass
class StagedDeltas:
    """One vector's part of one layer, on the device, not yet visible to a step."""

    low_rank: list[LowRankBlock] = field(default_factory=list)
    sparse: SparseMatrix | None = None
    dense: Tensor | None = None
    bias: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Device bytes."""
        total = sum(b.a.nbytes + b.b.nbytes + b.columns.nbytes for b in self.low_rank)
        return total + sum(
            item.nbytes for item in (self.sparse, self.dense, self.bias) if item is not None
        )


def _plus(values: Mapping[int, Value], column: int, value: Value | None) -> Mapping[int, Value]:
    return values if value is None else MappingProxyType({**values, column: value})


def _minus(values: Mapping[int, Value], column: int) -> Mapping[int, Value]:
    if column not in values:
        return values
    return MappingProxyType({k: value for k, value in values.items() if k != column})
