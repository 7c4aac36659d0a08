"""Rows of an embedding on a GPU: every resident vector of the site in one launch.

Semantics: y[t] += Σ_k C[part, row(t), k] · Δ_k[ids[t]], in float32, rounded to y's dtype once.
ids: [T]; y: [T, dim]. Δ_k is [vocabulary, dim], sparse, or low-rank, whose row is B_k[:, id] · A_k.
An id outside the vocabulary gets nothing. The grid follows from the shapes alone.
"""

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from taskvectors.kernels.gpu_step import CoefficientRows, StepBuffers
from taskvectors.kernels.triton_low_rank import RANK_FIELDS, LowRankSite
from taskvectors.kernels.triton_sparse import NARROW_WIDTH, SPARSE_FIELDS, SparseSite

DIMS, CHUNK, RANKS = 128, 32, 16


def add_rows(
    y: Tensor,
    ids: Tensor,
    sparse: SparseSite,
    low_rank: LowRankSite,
    step: StepBuffers,
    coefficients: CoefficientRows,
) -> None:
    """Add the rows `ids` of all vectors of an embedding of one part.

    y: [T, dim], rows contiguous. ids: [T], int32 or int64. Both sites have shape (vocabulary, dim).
    """
    rows, dim = sparse.shape
    assert sparse.shape == low_rank.shape
    assert len(low_rank.table) == 1, "an embedding is one part"
    assert y.shape == (len(ids), dim)
    assert y.stride(1) == ids.stride(0) == 1
    assert ids.dtype in (torch.int32, torch.int64)
    assert len(ids) <= step.limits.tokens
    assert sparse.col.dtype == (torch.int16 if dim <= NARROW_WIDTH else torch.int32)
    assert sparse.table.shape == (step.limits.columns, SPARSE_FIELDS)
    if len(ids) == 0:
        return
    _rows[(len(ids), triton.cdiv(dim, DIMS))](
        y, ids, coefficients.weights, sparse.crow, sparse.col, sparse.val, sparse.table,
        low_rank.data, low_rank.table, step.num_active, step.active, step.token_row,
        rows, dim, y.stride(0), *coefficients.weights.shape[1:], sparse.first_part,
        NARROW=sparse.col.dtype == torch.int16, FIELDS=SPARSE_FIELDS, RANK_FIELDS=RANK_FIELDS,
        DIMS=DIMS, CHUNK=CHUNK, RANKS=RANKS,
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _rows(  # type: ignore[no-untyped-def]
    y, ids, weights, crow, col, val, table, data, ranks_table, num_active, active, token_row,
    num_rows, dim, y_token, num_slots, num_columns, first_part,
    NARROW: tl.constexpr, FIELDS: tl.constexpr, RANK_FIELDS: tl.constexpr,
    DIMS: tl.constexpr, CHUNK: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    """A stretch of one token's row of y."""
    token = tl.program_id(0).to(tl.int64)
    dims = tl.program_id(1) * DIMS + tl.arange(0, DIMS)
    steps, ranks, is_dim = tl.arange(0, CHUNK), tl.arange(0, RANKS), dims < dim
    row = tl.load(ids + token).to(tl.int64)
    weight = (
        weights + (first_part * num_slots + tl.load(token_row + token)).to(tl.int64) * num_columns
    )
    total = tl.zeros((DIMS,), tl.float32)
    touched = 0
    for i in range(tl.load(num_active)):
        column = tl.load(active + i)
        coef = tl.load(weight + column)
        if (coef != 0) & (row >= 0) & (row < num_rows):
            touched += 1
            entry = table + FIELDS * column
            if tl.load(entry + 3) != 0:
                begin = tl.load(crow + tl.load(entry) + row)
                end = tl.load(crow + tl.load(entry) + row + 1)
                for first in range(begin, end, CHUNK):
                    here = first + steps < end
                    where = first + steps
                    place = tl.load(col + tl.load(entry + 1) + where, mask=here, other=0)
                    place = place.to(tl.int32)
                    if NARROW:
                        place = place & 0xFFFF
                    value = tl.load(val + tl.load(entry + 2) + where, mask=here, other=0)
                    hit = here[:, None] & (place[:, None] == dims[None, :])
                    found = tl.where(hit, value.to(tl.float32)[:, None], 0.0)
                    total += coef * tl.sum(found, axis=0)
            entry = ranks_table + RANK_FIELDS * column
            rank = tl.load(entry + 2).to(tl.int32)
            for first in range(0, rank, RANKS):
                is_rank = first + ranks < rank
                nth = (first + ranks).to(tl.int64)
                b = tl.load(data + tl.load(entry + 1) + nth * num_rows + row, mask=is_rank, other=0)
                a = tl.load(
                    data + tl.load(entry) + nth[:, None] * dim + dims[None, :],
                    mask=is_rank[:, None] & is_dim[None, :], other=0,
                )  # fmt: skip
                product = b.to(tl.float32)[:, None] * a.to(tl.float32)
                total += coef * tl.sum(product, axis=0)
    if touched != 0:
        into = y + token * y_token + dims
        before = tl.load(into, mask=is_dim, other=0)
        tl.store(into, (before.to(tl.float32) + total).to(before.dtype), mask=is_dim)
