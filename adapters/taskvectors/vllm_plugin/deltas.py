"""What the pool holds for one layer: every resident vector's part of that layer.

`Deltas` objects are immutable. The loader thread builds a new one and the layer swaps it in with
one assignment, so a step sees either the old or the new and never something between.
"""

import functools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor

from taskvectors.kernels.blocks import Block, LayerTable
from taskvectors.kernels.torch_ops import SparseMatrix

Value = TypeVar("Value")


@dataclass(frozen=True)
class LowRankBlock:
    """The ranks of all vectors on one part of a layer.

    part: position of the part in its layer. owners: the column that owns each of the R ranks.
    a: [R, in]. b: [R, out of the part], the scale folded in.
    """

    part: int
    owners: tuple[int, ...]
    a: Tensor
    b: Tensor

    def of(self, columns: Collection[int]) -> "LowRankBlock":
        """The ranks that `columns` own."""
        keep = [rank for rank, owner in enumerate(self.owners) if owner in columns]
        if len(keep) == len(self.owners):
            return self
        index = torch.tensor(keep, dtype=torch.int64, device=self.a.device)
        owners = tuple(self.owners[rank] for rank in keep)
        return LowRankBlock(self.part, owners, self.a[index], self.b[index])

    def joined(self, other: "LowRankBlock") -> "LowRankBlock":
        """Both blocks' ranks in one."""
        assert self.part == other.part
        a, b = torch.cat((self.a, other.a)), torch.cat((self.b, other.b))
        return LowRankBlock(self.part, self.owners + other.owners, a, b)


@dataclass(frozen=True, eq=False)
class LowRankPack:
    """All blocks of a layer with their A in one matrix [ΣR, in], so that x is read once.

    The blocks' own `a` are views of it, in order.
    """

    a: Tensor
    blocks: tuple[LowRankBlock, ...]

    @classmethod
    def pack(cls, blocks: Iterable[LowRankBlock]) -> "LowRankPack | None":
        """Pack `blocks`; None when no rank is left."""
        kept = [block for block in blocks if block.owners]
        if not kept:
            return None
        a = torch.cat([block.a for block in kept])
        parts = torch.split(a, [len(block.owners) for block in kept])
        views = [replace(block, a=part) for block, part in zip(kept, parts, strict=True)]
        return cls(a, tuple(views))

    @property
    def owners(self) -> set[int]:
        """The columns that have ranks here."""
        return {owner for block in self.blocks for owner in block.owners}

    def of(self, columns: Collection[int]) -> "LowRankPack | None":
        """The ranks that `columns` own; itself when they own all."""
        if self.owners <= set(columns):
            return self
        return LowRankPack.pack(block.of(columns) for block in self.blocks)


@dataclass(frozen=True)
class PartTensor:
    """A dense delta of one part: [out of the part, in], or [out of the part] of a bias or norm."""

    part: int
    value: Tensor


@dataclass(frozen=True)
class Deltas:
    """One layer's resident deltas by column.

    packed: what a CPU's compiled kernel computes, low-rank and sparse. Elsewhere, low_rank: all
    low-rank vectors; sparse: [out, in] matrices. dense and bias: by part.
    """

    packed: LayerTable = field(default_factory=LayerTable)
    low_rank: LowRankPack | None = None
    sparse: Mapping[int, SparseMatrix] = field(default_factory=lambda: MappingProxyType({}))
    dense: Mapping[int, tuple[PartTensor, ...]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    bias: Mapping[int, tuple[PartTensor, ...]] = field(default_factory=lambda: MappingProxyType({}))

    @functools.cached_property
    def is_packed(self) -> bool:
        """Whether nothing is here but `packed`."""
        return self.low_rank is None and not (self.sparse or self.dense or self.bias)

    def with_vector(self, column: int, staged: "StagedDeltas") -> "Deltas":
        """These and one more vector."""
        blocks = {block.part: block for block in self.low_rank.blocks} if self.low_rank else {}
        for block in staged.low_rank:
            known = blocks.get(block.part)
            blocks[block.part] = known.joined(block) if known else block
        return Deltas(
            packed=self.packed.plus(staged.packed) if staged.packed else self.packed,
            low_rank=LowRankPack.pack(blocks[part] for part in sorted(blocks)),
            sparse=_plus(self.sparse, column, staged.sparse),
            dense=_plus(self.dense, column, tuple(staged.dense)),
            bias=_plus(self.bias, column, tuple(staged.bias)),
        )

    def without_vector(self, column: int) -> "Deltas":
        """These less one vector."""
        return Deltas(
            packed=self.packed.without(column),
            low_rank=self.low_rank and self.low_rank.of(self.low_rank.owners - {column}),
            sparse=_minus(self.sparse, column),
            dense=_minus(self.dense, column),
            bias=_minus(self.bias, column),
        )


@dataclass
class StagedDeltas:
    """One vector's part of one layer, on the device, not yet visible to a step."""

    packed: list[Block] = field(default_factory=list)
    low_rank: list[LowRankBlock] = field(default_factory=list)
    sparse: SparseMatrix | None = None
    dense: list[PartTensor] = field(default_factory=list)
    bias: list[PartTensor] = field(default_factory=list)


def _plus(values: Mapping[int, Value], column: int, value: Value | None) -> Mapping[int, Value]:
    return MappingProxyType({**values, column: value}) if value else values


def _minus(values: Mapping[int, Value], column: int) -> Mapping[int, Value]:
    if column not in values:
        return values
    return MappingProxyType({k: value for k, value in values.items() if k != column})
