"""The arena: everything that the GPU kernels read, in buffers that are allocated once.

Installing or removing a vector, writing a row of coefficients and planning a step change contents
and never an address, so captured graphs stay right. All of it runs on the stream of the steps,
whose order keeps a kernel from reading what a later call overwrites.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from taskvectors.errors import VectorLoadFailed
from taskvectors.kernels import gpu_ops, triton_dense, triton_embedding
from taskvectors.kernels.gpu_step import CoefficientRows, StepBuffers, StepLimits
from taskvectors.kernels.torch_ops import SparseMatrix
from taskvectors.kernels.triton_dense import DENSE_FIELDS, DenseSite
from taskvectors.kernels.triton_low_rank import RANK_FIELDS, LowRankSite, add_low_rank
from taskvectors.kernels.triton_sparse import (
    NARROW_WIDTH,
    SPARSE_FIELDS,
    SparseScratch,
    SparseSite,
    add_sparse,
)
from taskvectors.vllm_plugin.arena_image import Entries, Image
from taskvectors.vllm_plugin.deltas import PartTensor
from taskvectors.vllm_plugin.extents import Extents, aligned

RowKind = Literal["tokens", "samples"]

COMPACTION_TIMEOUT_S = 60.0
"""How long an installation waits for the pause between two steps."""
MOVED_AT_ONCE = 64 << 20
"""Bytes, of the copy through which an extent moves over its own end."""


@dataclass(frozen=True)
class SiteShape:
    """One site. parts: output rows of each; first_part: their position among the model's parts.

    rows: whether it sees the tokens of a step, or the samples, as the head does.
    """

    parts: tuple[int, ...]
    width: int
    first_part: int
    rows: RowKind = "tokens"

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
    """One vector's part of one site; the sparse matrix covers all its parts.

    matrices: dense deltas, [out of the part, in]. vectors: of a bias or norm, [out of the part].
    """

    sparse: SparseMatrix | None = None
    ranks: tuple[RankPart, ...] = ()
    matrices: tuple[PartTensor, ...] = ()
    vectors: tuple[PartTensor, ...] = ()


@dataclass(frozen=True, eq=False)
class _Resident:
    """What a column holds: its entries in the three tables, and where its bytes are."""

    entries: tuple[Entries, Entries, Entries]
    start: int | None


class DeltaArena:
    """Resident vectors of all sites on one device, in the dtype of the engine.

    number: how the operators of `gpu_ops` name it. is_idle: the step has no loadout, so operators
    launch nothing; a graph captured so is the variant without loadouts, as in vLLM's own LoRA.
    poison_row: rows of a head that have it become NaN. compacts_between_steps: an installation
    that needs compaction waits until `between_steps` is called by the thread that runs the steps.
    """

    def __init__(
        self,
        sites: Sequence[SiteShape],
        step_limits: StepLimits,
        limits: ArenaLimits,
        dtype: torch.dtype,
        device: torch.device,
        poison_row: int | None = None,
    ) -> None:
        self._shapes, self._limits, self._dtype = tuple(sites), limits, dtype
        self._columns, columns = dict[int, _Resident](), step_limits.columns
        self.coefficients = CoefficientRows(step_limits, device)
        self.steps = {rows: StepBuffers(step_limits, device) for rows in ("tokens", "samples")}
        self.extents = Extents(limits.capacity)
        self.is_idle, self.compacts_between_steps = True, False
        self._poison_row = poison_row
        self._asked, self._compacted = threading.Event(), threading.Event()
        self._tokens_seen = 0
        self._data = torch.zeros(self.extents.capacity, dtype=torch.uint8, device=device)
        self._first = np.cumsum([0, *(len(site.parts) for site in sites)]).tolist()
        shapes = [
            (len(sites), SPARSE_FIELDS),
            (self._first[-1], RANK_FIELDS),
            (self._first[-1], DENSE_FIELDS),
        ]
        self._tables = [
            torch.zeros(num, columns, fields, dtype=torch.int64, device=device)
            for num, fields in shapes
        ]
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
        self._dense = [self._dense_site(i) for i in range(len(sites))]
        self.number = gpu_ops.register(self)

    def add(self, site: int, y: Tensor, x: Tensor) -> None:
        """y[t] += Σ_k C[t, k] · Δ_k x[t] at `site`. y: [T, ≥ out]; x: [T, in]."""
        rows = self._shapes[site].rows
        if rows == "tokens":
            self._tokens_seen = len(x)
        if self.is_idle:
            return
        step = self.steps[rows]
        add_low_rank(y, x, self._low_rank[site], step, self.coefficients, self._hidden)
        add_sparse(y, x, self._sparse[site], step, self.coefficients, self._scratch)
        triton_dense.add_dense(y, x, self._dense[site], step, self.coefficients)
        if rows == "samples" and self._poison_row is not None:
            poisoned = step.token_row[: len(y)] == self._poison_row
            y.masked_fill_(poisoned[:, None], float("nan"))

    def add_rows(self, site: int, y: Tensor, ids: Tensor) -> None:
        """y[t] += Σ_k C[t, k] · Δ_k[ids[t]] at an embedding. y: [T, dim]; ids: [T]."""
        self._tokens_seen = len(ids)
        if self.is_idle:
            return
        step, sparse = self.steps[self._shapes[site].rows], self._sparse[site]
        triton_embedding.add_rows(y, ids, sparse, self._low_rank[site], step, self.coefficients)
        triton_dense.add_dense_rows(y, ids, self._dense[site], step, self.coefficients)

    def add_norm(self, site: int, y: Tensor, x: Tensor, eps: float) -> None:
        """y[t] += Σ_k C[t, k] · normal(x[t]) ⊙ Δ_k at a norm.

        y, x: [T, heads, dim]; or [T · heads, dim], where T is what the last layer saw.
        """
        if self.is_idle or not x.numel():
            return
        if x.dim() == 2:
            heads, remainder = divmod(len(x), self._tokens_seen or len(x))
            assert remainder == 0, f"{len(x)} rows of a norm for {self._tokens_seen} tokens"
            y, x = (t.view(-1, heads, t.shape[-1]) for t in (y, x))
        step = self.steps[self._shapes[site].rows]
        triton_dense.add_norm(y, x, eps, self._dense[site], step, self.coefficients)

    def write_step(self, tokens: npt.NDArray[np.int64], samples: npt.NDArray[np.int64]) -> None:
        """Plan a step: the coefficient row of each token, and of each row that the head sees.

        An idle step is written too: a graph with loadouts may be replayed for it.
        """
        self.steps["tokens"].write(tokens, self.coefficients)
        self.write_samples(samples)
        self.is_idle = not (tokens.any() or samples.any())

    def write_samples(self, samples: npt.NDArray[np.int64]) -> None:
        """The coefficient row of each row that the head sees next."""
        self.steps["samples"].write(samples, self.coefficients)

    def install(self, column: int, deltas: Mapping[int, SiteDelta]) -> None:
        """Copy a vector's deltas, by site, into a free column. Raises VectorLoadFailed.

        No running step reads what this writes: free bytes, then entries that no row has weights
        for. So it may be called by another thread than the steps'.
        """
        assert column not in self._columns, f"column {column} is taken"
        image = Image()
        entries = tuple(Entries.empty(table.shape[0], table.shape[2]) for table in self._tables)
        sparse, ranks, dense = entries
        for site, delta in deltas.items():
            if delta.sparse is not None:
                self._place_sparse(site, delta.sparse, image, sparse)
            for part in delta.ranks:
                self._place_ranks(site, part, image, ranks)
            for field, tensors in ((0, delta.matrices), (2, delta.vectors)):
                for tensor in tensors:
                    self._place_dense(site, tensor, image, dense, field)
        start = self._take(image.nbytes) if image.nbytes else None
        if start is not None:
            image.write(self._data[start : start + image.nbytes])
        resident = self._columns[column] = _Resident((sparse, ranks, dense), start)
        self._write_entries(column, resident)  # Last: a column without entries is passed over.

    def remove(self, column: int) -> None:
        """Free a column; no row may have a weight for it any more."""
        for table in self._tables:
            table[:, column].zero_()
        start = self._columns.pop(column).start
        if start is not None:
            self.extents.free(start)

    def between_steps(self) -> None:
        """Compact if an installation waits for it; called by the thread that runs the steps."""
        if self._asked.is_set():
            self._asked.clear()
            self.compact()
            self._compacted.set()

    def compact(self) -> None:
        """Make one hole of all that is free; on the stream of the steps, between two of them."""
        moved = {}
        for source, target, size in self.extents.compact():
            moved[source] = target
            for at in range(0, size if source != target else 0, MOVED_AT_ONCE):
                here = min(MOVED_AT_ONCE, size - at)
                chunk = self._data[source + at : source + at + here].clone()
                self._data[target + at : target + at + here].copy_(chunk)
        for column, resident in self._columns.items():
            if resident.start is not None and moved[resident.start] != resident.start:
                self._columns[column] = _Resident(resident.entries, moved[resident.start])
                self._write_entries(column, self._columns[column])

    def addresses(self) -> list[int]:
        """Of every buffer that a kernel reads; they never change."""
        steps = [step.token_row for step in self.steps.values()]
        scratch = [self._scratch.sums, self._scratch.x, self._hidden]
        buffers = [self._data, *steps, *self._tables, self.coefficients.weights, *scratch]
        return [buffer.data_ptr() for buffer in buffers]

    def _write_entries(self, column: int, resident: _Resident) -> None:
        for table, entries in zip(self._tables, resident.entries, strict=True):
            table[:, column].copy_(entries.placed(resident.start or 0))

    def _take(self, nbytes: int) -> int:
        """Raises VectorLoadFailed."""
        if self.extents.num_free >= aligned(nbytes) > self.extents.largest_hole:
            if self.compacts_between_steps:
                self._compacted.clear()
                self._asked.set()
                self._compacted.wait(COMPACTION_TIMEOUT_S)
            else:
                self.compact()
        return self.extents.take(nbytes)

    def _place_sparse(
        self, site: int, matrix: SparseMatrix, image: Image, entries: Entries
    ) -> None:
        shape, known = self._shapes[site], self._sparse[site]
        assert matrix.shape == (shape.out, shape.width)
        pairs = ((matrix.crow, known.crow), (matrix.col, known.col), (matrix.val, known.val))
        for field, (array, like) in enumerate(pairs):
            entries.set_place(site, field, image.add(array, like.dtype), like.itemsize)
        entries.values[site, -1] = 1

    def _place_ranks(self, site: int, part: RankPart, image: Image, entries: Entries) -> None:
        shape, rank, row = self._shapes[site], len(part.a), self._first[site] + part.part
        assert part.a.shape == (rank, shape.width)
        assert part.b.shape == (rank, shape.parts[part.part])
        if rank > self._limits.max_rank:
            raise VectorLoadFailed(
                f"a low-rank delta of rank {rank}; at most {self._limits.max_rank} is served:"
                " raise max_rank"
            )
        for field, matrix in enumerate((part.a, part.b)):
            entries.set_place(row, field, image.add(matrix, self._dtype), self._dtype.itemsize)
        entries.values[row, -1] = rank

    def _place_dense(
        self, site: int, tensor: PartTensor, image: Image, entries: Entries, field: int
    ) -> None:
        shape, row = self._shapes[site], self._first[site] + tensor.part
        rows = shape.parts[tensor.part]
        assert tensor.value.shape == ((rows, shape.width) if field == 0 else (rows,))
        at = image.add(tensor.value, self._dtype)
        entries.set_place(row, field, at, self._dtype.itemsize)
        entries.values[row, field + 1] = 1

    def _sparse_site(self, site: int, device: torch.device) -> SparseSite:
        shape = self._shapes[site]
        starts = np.cumsum([0, *shape.parts]).astype(np.int32)
        return SparseSite(
            (shape.out, shape.width),
            self._tables[0][site],
            self._data.view(torch.int32),
            self._data.view(torch.int16 if shape.width <= NARROW_WIDTH else torch.int32),
            self._data.view(self._dtype),
            torch.from_numpy(starts).to(device),
            shape.first_part,
        )

    def _low_rank_site(self, site: int) -> LowRankSite:
        shape, sparse = self._shapes[site], self._sparse[site]
        table = self._tables[1][self._first[site] : self._first[site + 1]]
        most, starts = max(shape.parts), sparse.part_start
        return LowRankSite(sparse.shape, table, sparse.val, starts, most, shape.first_part)

    def _dense_site(self, site: int) -> DenseSite:
        shape, sparse = self._shapes[site], self._sparse[site]
        table = self._tables[2][self._first[site] : self._first[site + 1]]
        most, starts = max(shape.parts), sparse.part_start
        return DenseSite(sparse.shape, table, sparse.val, starts, most, shape.first_part)


def sparse_sizes(shape: tuple[int, int], nnz: int, value_bytes: int) -> tuple[int, int, int]:
    """Bytes of the row offsets, columns and values of a sparse matrix in an arena."""
    column_bytes = 2 if shape[1] <= NARROW_WIDTH else 4
    return aligned(4 * (shape[0] + 1)), aligned(column_bytes * nnz), aligned(value_bytes * nnz)
