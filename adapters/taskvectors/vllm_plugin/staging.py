"""Staging: turn a task vector in memory into device tensors for each site it touches."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from taskvectors.errors import BaseMismatch, VectorLoadFailed
from taskvectors.footprint import PACKED, resident_bytes
from taskvectors.format import FileHeader
from taskvectors.kernels.blocks import Block, RankPair
from taskvectors.kernels.torch_ops import SparseMatrix
from taskvectors.packed import BF16, MOST, PackedRows
from taskvectors.vector import Delta, DenseDelta, LowRankDelta, SparseDelta, TaskVector
from taskvectors.vllm_plugin.deltas import LowRankBlock, PartTensor, StagedDeltas
from taskvectors.vllm_plugin.sites import Part, Site, SiteIndex

Staged = list[tuple[Site, StagedDeltas]]

MAX_MAGNITUDE = 65504.0
"""The largest float16. Larger deltas would overflow some product, and NaN spreads."""


class Stager:
    """Stages vectors for one engine.

    dtype: the engine's own, which low-rank and dense deltas take. On a CPU the deltas of a linear
    layer keep the file's width, packed; a sparse one of an embedding is float32, as torch's sparse
    products know no bfloat16.
    packs: whether linear layers are packed; by default on a CPU. sparse_dtype: of sparse values
    that are not packed; by default as said above.
    """

    def __init__(
        self,
        index: SiteIndex,
        device: torch.device,
        dtype: torch.dtype,
        *,
        packs: bool | None = None,
        sparse_dtype: torch.dtype | None = None,
    ) -> None:
        self._index = index
        self._device = device
        self._dtype = dtype
        self._packs = device.type == "cpu" if packs is None else packs
        wide = torch.float32 if device.type == "cpu" else dtype
        self._sparse_dtype = sparse_dtype or wide

    def nbytes(self, header: FileHeader) -> int:
        """The device bytes of a vector; see the footprint."""
        sparse = PACKED if self._packs else self._sparse_dtype.itemsize
        return resident_bytes(header, self._dtype.itemsize, sparse)

    def stage(self, vector: TaskVector, column: int) -> Staged:
        """Build the tensors of `vector`; raises VectorLoadFailed, BaseMismatch."""
        staged: dict[int, tuple[Site, StagedDeltas]] = {}
        sparse: dict[int, list[tuple[Part, SparseDelta]]] = {}
        sites: dict[int, Site] = {}
        for name, delta in vector.parameters.items():
            places = self._index.find(name)
            if not places:
                raise VectorLoadFailed(f"parameter {name!r} has no place in this engine")
            shared: Tensor | None = None  # by the two sites of a tied embedding
            for site, position in places:
                _, target = staged.setdefault(id(site), (site, StagedDeltas()))
                sites[id(site)] = site
                part = site.parts[position]
                if self._is_packed(name, delta, site):
                    _check_shape(name, delta, (part.size, _input_width(site)))
                    target.packed.append(_packed(name, delta, part, column))
                elif isinstance(delta, SparseDelta) and not _is_small(name, site):
                    _check_shape(name, delta, (part.size, _input_width(site)))
                    sparse.setdefault(id(site), []).append((part, delta))
                elif isinstance(delta, DenseDelta) and not _is_small(name, site):
                    _check_shape(name, delta, (part.size, _input_width(site)))
                    if shared is None:
                        shared = self._tensor(name, delta.values.astype(np.float32))
                    target.dense.append(PartTensor(position, shared))
                else:
                    self._stage_one(name, delta, site, position, column, target)
        self._stage_sparse(sparse, sites, staged)
        return list(staged.values())

    def _is_packed(self, name: str, delta: Delta, site: Site) -> bool:
        is_matrix = not isinstance(delta, DenseDelta) and not _is_small(name, site)
        is_linear = site.kind == "linear"
        return self._packs and is_linear and is_matrix and max(delta.shape) <= MOST

    def _stage_one(
        self, name: str, delta: Delta, site: Site, position: int, column: int, target: StagedDeltas
    ) -> None:
        part = site.parts[position]
        if _is_small(name, site):
            _check_shape(name, delta, (part.size,))
            dense = target.bias if name.endswith(".bias") else target.dense
            dense.append(PartTensor(position, self._tensor(name, _small(name, delta))))
            return
        _check_shape(name, delta, (part.size, _input_width(site)))
        assert isinstance(delta, LowRankDelta)
        target.low_rank.append(self._low_rank(name, delta, position, column))

    def _low_rank(self, name: str, delta: LowRankDelta, position: int, column: int) -> LowRankBlock:
        scaled = delta.b.astype(np.float32).T * np.float32(delta.scale)
        a = self._tensor(name, delta.a.astype(np.float32))
        owners = (column,) * len(delta.a)
        return LowRankBlock(position, owners, a, self._tensor(name, scaled))

    def _stage_sparse(
        self,
        sparse: dict[int, list[tuple[Part, SparseDelta]]],
        sites: dict[int, Site],
        staged: dict[int, tuple[Site, StagedDeltas]],
    ) -> None:
        """One fused matrix per site; a tied embedding's two sites share theirs."""
        shared: dict[tuple[int, ...], SparseMatrix] = {}
        for key, pieces in sparse.items():
            identity = tuple(id(delta) for _, delta in pieces)
            if identity not in shared:
                shared[identity] = self._fused(sites[key], pieces)
            staged[key][1].sparse = shared[identity]

    def _fused(self, site: Site, pieces: list[tuple[Part, SparseDelta]]) -> SparseMatrix:
        pieces = sorted(pieces, key=lambda piece: piece[0].start)
        width = pieces[0][1].shape[1]
        index = np.concatenate([delta.index + part.start * width for part, delta in pieces])
        values = np.concatenate([delta.values.astype(np.float32) for _, delta in pieces])
        shape = (site.out_features, width)
        value = self._tensor(pieces[0][0].module, values, self._sparse_dtype)
        return SparseMatrix.from_flat(shape, torch.from_numpy(index).to(self._device), value)

    def _tensor(
        self, name: str, array: npt.NDArray[np.float32], dtype: torch.dtype | None = None
    ) -> Tensor:
        """On the device in the engine's dtype, or `dtype`; raises VectorLoadFailed if too large."""
        _check_magnitude(name, array)
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device, dtype or self._dtype)


def _packed(name: str, delta: Delta, part: Part, column: int) -> Block:
    """A block for the CPU's kernel, in the file's own width where that is bfloat16.

    Its arrays are copies: views would keep the whole file in memory.
    """
    if isinstance(delta, SparseDelta):
        _check_magnitude(name, delta.values)
        shape = (part.size, delta.shape[1])
        packed = PackedRows.from_flat(shape, delta.index, delta.values)
        return Block(column, part.index, part.start, packed)
    assert isinstance(delta, LowRankDelta)
    _check_magnitude(name, delta.a)
    _check_magnitude(name, delta.b.astype(np.float32) * np.float32(delta.scale))
    is_bf16 = delta.a.dtype == delta.b.dtype == BF16
    a, b = (_bits(m) if is_bf16 else _float32(m) for m in (delta.a, delta.b.T))
    return Block(column, part.index, part.start, RankPair(a, b, float(delta.scale)))


def _bits(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.array(matrix, order="C").view(np.uint16)


def _float32(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.array(matrix, np.float32, order="C")


def _check_magnitude(name: str, array: npt.NDArray[Any]) -> None:
    """Raises VectorLoadFailed; NaN counts as too large."""
    largest = float(np.abs(array).max(initial=0.0))
    if not largest <= MAX_MAGNITUDE:
        raise VectorLoadFailed(
            f"{name!r} has a value of magnitude {largest:g}; at most {MAX_MAGNITUDE:g} is"
            " served, so that no product overflows"
        )


def _check_shape(name: str, delta: Delta, expected: tuple[int, ...]) -> None:
    if tuple(delta.shape) != expected:
        raise BaseMismatch(
            f"{name!r} has shape {list(delta.shape)}, the engine's is {list(expected)}"
        )


def _is_small(name: str, site: Site) -> bool:
    """Whether the parameter is a vector: a bias or the weight of a norm."""
    return name.endswith(".bias") or site.kind == "norm"


def _input_width(site: Site) -> int:
    width = getattr(site.module, "input_size", None) or getattr(site.module, "embedding_dim", None)
    assert isinstance(width, int)
    return width


def _small(name: str, delta: Delta) -> npt.NDArray[np.float32]:
    """The delta of a bias or norm as a plain array."""
    if isinstance(delta, DenseDelta):
        return delta.values.astype(np.float32)
    if isinstance(delta, SparseDelta):
        flat = np.zeros(delta.shape, dtype=np.float32)
        flat[delta.index] = delta.values.astype(np.float32)
        return flat
    raise VectorLoadFailed(f"{name!r} is low-rank, but a bias or norm has no ranks")
