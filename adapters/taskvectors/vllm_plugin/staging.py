"""Staging: turn a task vector in memory into device tensors for each site it touches."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from taskvectors.errors import BaseMismatch, VectorLoadFailed
from taskvectors.kernels.torch_ops import SparseMatrix
from taskvectors.vector import Delta, DenseDelta, LowRankDelta, SparseDelta, TaskVector
from taskvectors.vllm_plugin.deltas import LowRankBlock, StagedDeltas
from taskvectors.vllm_plugin.sites import Part, Site, SiteIndex

Staged = list[tuple[Site, StagedDeltas]]


class Stager:
    """Stages vectors for one engine.

    dtype: of low-rank and dense deltas, the engine's own. sparse_dtype: of sparse values;
    float32 on a CPU, whose sparse products know no bfloat16.
    """

    def __init__(self, index: SiteIndex, device: torch.device, dtype: torch.dtype) -> None:
        self._index = index
        self._device = device
        self._dtype = dtype
        self._sparse_dtype = torch.float32 if device.type == "cpu" else dtype

    def stage(self, vector: TaskVector, column: int) -> Staged:
        """Build the tensors of `vector`; raises VectorLoadFailed, BaseMismatch."""
        staged: dict[int, tuple[Site, StagedDeltas]] = {}
        sparse: dict[int, list[tuple[Part, SparseDelta]]] = {}
        sites: dict[int, Site] = {}
        for name, delta in vector.parameters.items():
            places = self._index.find(name)
            if not places:
                raise VectorLoadFailed(f"parameter {name!r} has no place in this engine")
            for site, position in places:
                _, target = staged.setdefault(id(site), (site, StagedDeltas()))
                sites[id(site)] = site
                if isinstance(delta, SparseDelta) and len(delta.shape) == 2:
                    self._check_shape(name, delta, site, position)
                    sparse.setdefault(id(site), []).append((site.parts[position], delta))
                else:
                    self._stage_one(name, delta, site, position, column, target)
        self._stage_sparse(sparse, sites, staged)
        return list(staged.values())

    def _stage_one(
        self, name: str, delta: Delta, site: Site, position: int, column: int, target: StagedDeltas
    ) -> None:
        part = site.parts[position]
        if name.endswith(".bias"):
            target.bias = self._placed(target.bias, (site.out_features,), part, delta, name)
        elif site.kind == "norm":
            target.dense = self._placed(target.dense, (part.size,), part, delta, name)
        elif isinstance(delta, LowRankDelta):
            self._check_shape(name, delta, site, position)
            target.low_rank.append(self._low_rank(delta, position, column))
        elif isinstance(delta, DenseDelta):
            width = self._check_shape(name, delta, site, position)
            shape = (site.out_features, width)
            target.dense = self._placed(target.dense, shape, part, delta, name)
        else:
            raise VectorLoadFailed(f"parameter {name!r} has shape {list(delta.shape)}: not served")

    def _placed(
        self,
        whole: Tensor | None,
        shape: tuple[int, ...],
        part: Part,
        delta: Delta,
        name: str,
    ) -> Tensor:
        """`delta` at its part's rows of a tensor of `shape`, zero elsewhere."""
        expected = (part.size, *shape[1:])
        if tuple(delta.shape) != expected:
            raise BaseMismatch(f"{name!r} has shape {list(delta.shape)}, not {list(expected)}")
        if whole is None:
            whole = torch.zeros(shape, dtype=self._dtype, device=self._device)
        whole[part.start : part.stop] = self._tensor(_dense(delta), self._dtype)
        return whole

    def _low_rank(self, delta: LowRankDelta, position: int, column: int) -> LowRankBlock:
        scaled = np.ascontiguousarray(delta.b.astype(np.float32).T * np.float32(delta.scale))
        columns = torch.full((len(delta.a),), column, dtype=torch.int64, device=self._device)
        a = self._tensor(delta.a.astype(np.float32), self._dtype)
        return LowRankBlock(position, columns, a, self._tensor(scaled, self._dtype))

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
        matrix = SparseMatrix.from_flat(
            shape, torch.from_numpy(index), torch.from_numpy(values).to(self._sparse_dtype)
        )
        return matrix.to(self._device)

    def _check_shape(self, name: str, delta: Delta, site: Site, position: int) -> int:
        """The width of a [out, in] delta that fits its part; raises BaseMismatch."""
        part = site.parts[position]
        width = _input_width(site)
        if tuple(delta.shape) != (part.size, width):
            raise BaseMismatch(
                f"{name!r} has shape {list(delta.shape)}, the engine's is {[part.size, width]}"
            )
        return width

    def _tensor(self, array: npt.NDArray[np.float32], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device, dtype)


def _input_width(site: Site) -> int:
    width = getattr(site.module, "input_size", None) or getattr(site.module, "embedding_dim", None)
    assert isinstance(width, int)
    return width


def _dense(delta: Delta) -> npt.NDArray[np.float32]:
    """A small delta (bias, norm) or a dense one, as a plain array."""
    if isinstance(delta, DenseDelta):
        return delta.values.astype(np.float32)
    if isinstance(delta, SparseDelta):
        flat = np.zeros(int(np.prod(delta.shape)), dtype=np.float32)
        flat[delta.index] = delta.values.astype(np.float32)
        return flat.reshape(delta.shape)
    raise VectorLoadFailed("a low-rank delta of a bias or norm is not served")
