"""The arena: everything that the GPU kernels read, in buffers that are allocated once.

Installing or removing a vector, writing a row of coefficients and planning a step change contents
and never an address, so captured graphs stay right. All of it runs on the stream of the steps,
whose order keeps a kernel from reading what a later call overwrites.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from taskvectors.errors import VectorLoadFailed
from taskvectors.kernels import gpu_ops, triton_embedding
from taskvectors.kernels.gpu_step import CoefficientRows, StepBuffers, StepLimits
from taskvectors.kernels.torch_ops import SparseMatrix
from taskvectors.kernels.triton_low_rank import RANK_FIELDS, LowRankSite, add_low_rank
from taskvectors.kernels.triton_sparse import (
    NARROW_WIDTH,
    SPARSE_FIELDS,
    SparseScratch,
    SparseSite,
    add_sparse,
)
from taskvectors.vllm_plugin.extents import Extents, aligned


@dataclass(frozen=True)
class SiteShape:
    """One site. parts: output rows of each; first_part: their position among the model's parts.

    rows: whether it sees the tokens of a step, or the samples, as the head does.
    """

    parts: tuple[int, ...]
    width: int
    first_part: int
    rows: Literal["tokens", "samples"] = "tokens"

    @property
    def out(self) -> int:
        """Output rows of all parts."""
        return sum(self.parts)


@dataclass(frozen=True)
class ArenaLimits:
    """Sizes of the buffers beside those of a step.

    capacity: bytes for vectors. max_rank: of a low-rank delta. rank_tokens: tokens whose ranks are
    held at a time. sum_bytes: for the sums of paired tokens; sites that need more are multiplied
    in tiles.
    """

    capacity: int
    max_rank: int = 64
    rank_tokens: int = 1024
    sum_bytes: int = 128 << 20


@dataclass(frozen=True, eq=False)
class RankPart:
    """A low-rank delta of one part. a: [R, in]; b: [R, out of the part], the scale folded in."""

    part: int
    a: Tensor
    b: Tensor


@dataclass(frozen=True, eq=False)
class SiteDelta:
    """One vector's part of one site; the sparse matrix covers all its parts."""

    sparse: SparseMatrix | None = None
    ranks: tuple[RankPart, ...] = ()


@dataclass
class _Resident:
    """What a column holds: extents, and those of matrices that several sites share."""

    extents: list[int] = field(default_factory=list)
    shared: dict[int, int] = field(default_factory=dict)


class DeltaArena:
    """Resident vectors of all sites on one device, in the dtype of the engine.

    number: how the operators of `gpu_ops` name it.
    """

    def __init__(
        self,
        sites: Sequence[SiteShape],
        step_limits: StepLimits,
        limits: ArenaLimits,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._shapes, self._limits, self._dtype = tuple(sites), limits, dtype
        self._columns, columns = dict[int, _Resident](), step_limits.columns
        self.coefficients = CoefficientRows(step_limits, device)
        self.steps = {rows: StepBuffers(step_limits, device) for rows in ("tokens", "samples")}
        self.extents = Extents(limits.capacity)
        self._data = torch.zeros(self.extents.capacity, dtype=torch.uint8, device=device)
        self._sparse_table = torch.zeros(
            len(sites), columns, SPARSE_FIELDS, dtype=torch.int64, device=device
        )
        self._first = np.cumsum([0, *(len(site.parts) for site in sites)]).tolist()
        self._rank_table = torch.zeros(
            self._first[-1], columns, RANK_FIELDS, dtype=torch.int64, device=device
        )
        width, parts = max(s.width for s in sites), max(len(s.parts) for s in sites)
        most = max(s.out for s in sites) * step_limits.pairs
        sums = torch.empty(min(most, limits.sum_bytes // 4), device=device)
        x = torch.empty(step_limits.pair_tokens * width, dtype=dtype, device=device)
        self._scratch = SparseScratch(sums, x)
        tokens = min(limits.rank_tokens, step_limits.tokens)
        shape = (parts, tokens, columns, limits.max_rank)
        self._hidden = torch.empty(shape, dtype=dtype, device=device)
        self._sparse = [self._sparse_site(i, device) for i in range(len(sites))]
        self._low_rank = [self._low_rank_site(i) for i in range(len(sites))]
        self.number = gpu_ops.register(self)

    def add(self, site: int, y: Tensor, x: Tensor) -> None:
        """y[t] += Σ_k C[t, k] · Δ_k x[t] at `site`. y: [T, ≥ out]; x: [T, in]."""
        step = self.steps[self._shapes[site].rows]
        add_low_rank(y, x, self._low_rank[site], step, self.coefficients, self._hidden)
        add_sparse(y, x, self._sparse[site], step, self.coefficients, self._scratch)

    def add_rows(self, site: int, y: Tensor, ids: Tensor) -> None:
        """y[t] += Σ_k C[t, k] · Δ_k[ids[t]] at an embedding. y: [T, dim]; ids: [T]."""
        step, sparse = self.steps[self._shapes[site].rows], self._sparse[site]
        triton_embedding.add_rows(y, ids, sparse, self._low_rank[site], step, self.coefficients)

    def write_step(self, tokens: npt.NDArray[np.int64], samples: npt.NDArray[np.int64]) -> None:
        """Plan a step: the coefficient row of each token, and of each row that the head sees."""
        self.steps["tokens"].write(tokens, self.coefficients)
        self.steps["samples"].write(samples, self.coefficients)

    def install(self, column: int, deltas: Mapping[int, SiteDelta]) -> None:
        """Copy a vector's deltas, by site, into a free column. Raises VectorLoadFailed."""
        assert column not in self._columns, f"column {column} is taken"
        resident = self._columns[column] = _Resident()
        sparse = torch.zeros(self._sparse_table[:, column].shape, dtype=torch.int64)
        ranks = torch.zeros(self._rank_table[:, column].shape, dtype=torch.int64)
        try:
            for site, delta in deltas.items():
                if delta.sparse is not None:
                    sparse[site] = self._place_sparse(site, delta.sparse, resident)
                for part in delta.ranks:
                    ranks[self._first[site] + part.part] = self._place_ranks(site, part, resident)
        except VectorLoadFailed:
            self.remove(column)
            raise
        # Last: a column without entries is passed over.
        self._sparse_table[:, column].copy_(sparse)
        self._rank_table[:, column].copy_(ranks)

    def remove(self, column: int) -> None:
        """Free a column; no row may have a weight for it any more."""
        self._sparse_table[:, column].zero_()
        self._rank_table[:, column].zero_()
        for start in self._columns.pop(column).extents:
            self.extents.free(start)

    def addresses(self) -> list[int]:
        """Of every buffer that a kernel reads; they never change."""
        steps = [step.token_row for step in self.steps.values()]
        tables = [self._sparse_table, self._rank_table, self.coefficients.weights]
        scratch = [self._scratch.sums, self._scratch.x, self._hidden]
        return [buffer.data_ptr() for buffer in (self._data, *steps, *tables, *scratch)]

    def _place_sparse(self, site: int, matrix: SparseMatrix, resident: _Resident) -> Tensor:
        shape, known = self._shapes[site], self._sparse[site]
        assert matrix.shape == (shape.out, shape.width)
        sizes = sparse_sizes(matrix.shape, len(matrix.col), self._dtype.itemsize)
        start = resident.shared.get(id(matrix))
        if start is None:
            start = self._take(sum(sizes), resident)
            col_at, val_at = start + sizes[0], start + sizes[0] + sizes[1]
            _write(known.crow, start, matrix.crow)
            # To 16 bits by way of bits: 65535 is −1 there.
            _write(known.col, col_at, matrix.col.to(known.col.dtype))
            _write(known.val, val_at, matrix.val)
            resident.shared[id(matrix)] = start
        at = np.cumsum([start, sizes[0], sizes[1]]) // [4, known.col.itemsize, known.val.itemsize]
        return torch.tensor([*at.tolist(), 1])

    def _place_ranks(self, site: int, part: RankPart, resident: _Resident) -> Tensor:
        shape, rank = self._shapes[site], len(part.a)
        assert part.a.shape == (rank, shape.width)
        assert part.b.shape == (rank, shape.parts[part.part])
        if rank > self._limits.max_rank:
            raise VectorLoadFailed(
                f"a low-rank delta of rank {rank}; at most {self._limits.max_rank} is served:"
                " raise max_rank"
            )
        sizes = [aligned(matrix.numel() * self._dtype.itemsize) for matrix in (part.a, part.b)]
        start, data = self._take(sum(sizes), resident), self._low_rank[site].data
        for at, matrix in ((start, part.a), (start + sizes[0], part.b)):
            _write(data, at, matrix.reshape(-1))
        return torch.tensor([start // data.itemsize, (start + sizes[0]) // data.itemsize, rank])

    def _take(self, nbytes: int, resident: _Resident) -> int:
        resident.extents.append(self.extents.take(nbytes))
        return resident.extents[-1]

    def _sparse_site(self, site: int, device: torch.device) -> SparseSite:
        shape = self._shapes[site]
        starts = np.cumsum([0, *shape.parts]).astype(np.int32)
        return SparseSite(
            (shape.out, shape.width),
            self._sparse_table[site],
            self._data.view(torch.int32),
            self._data.view(torch.int16 if shape.width <= NARROW_WIDTH else torch.int32),
            self._data.view(self._dtype),
            torch.from_numpy(starts).to(device),
            shape.first_part,
        )

    def _low_rank_site(self, site: int) -> LowRankSite:
        shape, sparse = self._shapes[site], self._sparse[site]
        table = self._rank_table[self._first[site] : self._first[site + 1]]
        most = max(shape.parts)
        starts = sparse.part_start
        return LowRankSite(sparse.shape, table, sparse.val, starts, most, shape.first_part)


def sparse_sizes(shape: tuple[int, int], nnz: int, value_bytes: int) -> tuple[int, int, int]:
    """Bytes of the row offsets, columns and values of a sparse matrix in an arena."""
    column_bytes = 2 if shape[1] <= NARROW_WIDTH else 4
    return aligned(4 * (shape[0] + 1)), aligned(column_bytes * nnz), aligned(value_bytes * nnz)


def _write(buffer: Tensor, start: int, values: Tensor) -> None:
    """Copy `values` to byte `start` of `buffer`."""
    assert start % buffer.itemsize == 0
    at = start // buffer.itemsize
    buffer[at : at + len(values)].copy_(values)
