"""Low-rank products on a GPU: every resident vector of a site in two grouped products.

Semantics: y[t] += Σ_k C[part, row(t), k] · (x[t] A_kᵀ) B_k for each part of the site, the scale
folded into B. x: [T, in]; y: [T, out]; A_k: [R, in]; B_k: [R, out of the part]. The first product
shrinks x to weighted ranks, the second expands them into y, which is rounded once. A tile of
tokens passes over the vectors that none of them uses. Sums run in one fixed order; a zero
coefficient selects zero and never multiplies. Grids follow from shapes alone.
"""

from dataclasses import dataclass

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from taskvectors.kernels.gpu_step import CoefficientRows, StepBuffers
from taskvectors.kernels.triton_dot import dot

A_AT, B_AT, RANK, RANK_FIELDS = range(4)
"""Fields of an entry: where A and B begin, in elements, and the rank; 0 without a delta."""

TOKENS, RANKS, COLUMNS, ROWS, SHRINK_COLUMNS = 16, 16, 128, 128, 8
"""Tile sizes; SHRINK_COLUMNS: programs that share the vectors of a step."""


@dataclass(frozen=True, eq=False)
class LowRankSite:
    """Where one site's low-rank vectors lie.

    shape: (out, in). table: int64 [parts, K, RANK_FIELDS]. data: values of all A and B.
    part_start: int32 [parts + 1], the first output row of each, and `out`; most_rows: of the
    largest part; first_part: their position among all parts of the model.
    """

    shape: tuple[int, int]
    table: Tensor
    data: Tensor
    part_start: Tensor
    most_rows: int
    first_part: int


def add_low_rank(
    y: Tensor,
    x: Tensor,
    site: LowRankSite,
    step: StepBuffers,
    coefficients: CoefficientRows,
    hidden: Tensor,
) -> None:
    """Add all low-rank vectors of `site`.

    y: [T, ≥ out], x: [T, in], rows contiguous, of the dtype of `site.data`. hidden: scratch of
    the same dtype, [parts ≥ the site's, tokens at a time, K, most ranks of a vector].
    """
    _check(y, x, site, step, hidden)
    for start in range(0, len(x), hidden.shape[1]):
        stop = min(start + hidden.shape[1], len(x))
        rows = step.token_row[start:stop]
        _run(y[start:stop], x[start:stop], rows, site, step, coefficients, hidden)


def _run(
    y: Tensor,
    x: Tensor,
    token_row: Tensor,
    site: LowRankSite,
    step: StepBuffers,
    coefficients: CoefficientRows,
    hidden: Tensor,
) -> None:
    (tokens, width), parts = x.shape, site.table.shape[0]
    slots, columns = coefficients.weights.shape[1:]
    tiles, share = triton.cdiv(tokens, TOKENS), min(columns, SHRINK_COLUMNS)
    if share == 0:
        return
    shared = (coefficients.weights, site.data, site.table, step.num_active, step.active, token_row)
    _shrink[(tiles, parts, share)](
        hidden, x, *shared, tokens, width, x.stride(0), slots, columns, site.first_part,
        hidden.stride(0), hidden.stride(1), hidden.stride(2),
        FIELDS=RANK_FIELDS, TOKENS=TOKENS, RANKS=RANKS, COLUMNS=COLUMNS,
    )  # fmt: skip
    _expand[(tiles, parts, triton.cdiv(site.most_rows, ROWS))](
        y, hidden, *shared, site.part_start, tokens, y.stride(0), slots, columns, site.first_part,
        hidden.stride(0), hidden.stride(1), hidden.stride(2),
        FIELDS=RANK_FIELDS, TOKENS=TOKENS, RANKS=RANKS, ROWS=ROWS,
    )  # fmt: skip


def _check(y: Tensor, x: Tensor, site: LowRankSite, step: StepBuffers, hidden: Tensor) -> None:
    rows, width = site.shape
    assert x.dim() == y.dim() == 2
    assert len(x) == len(y) <= step.limits.tokens
    assert x.shape[1] == width, f"{x.shape[1]} input features; the site has {width}"
    assert y.shape[1] >= rows > 0
    assert x.stride(1) == y.stride(1) == 1
    assert x.dtype == y.dtype == site.data.dtype == hidden.dtype
    assert site.table.dtype == torch.int64
    assert site.table.is_contiguous()
    assert site.table.shape[1:] == (step.limits.columns, RANK_FIELDS)
    assert len(site.table) == len(site.part_start) - 1 <= hidden.shape[0]
    assert hidden.is_contiguous()
    assert hidden.shape[1] > 0
    assert hidden.shape[2] == step.limits.columns


@triton.jit  # type: ignore[untyped-decorator]
def _shrink(  # type: ignore[no-untyped-def]
    hidden, x, weights, data, table, num_active, active, token_row,
    num_tokens, width, x_token, num_slots, num_columns, first_part,
    hidden_part, hidden_token, hidden_column,
    FIELDS: tl.constexpr, TOKENS: tl.constexpr, RANKS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """hidden[part, t, k, r] = C · (x[t] · A_k[r]), zero where C is."""
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    part = tl.program_id(1)
    is_token = tokens < num_tokens
    row = tl.load(token_row + tokens, mask=is_token, other=0).to(tl.int64)
    weight = weights + ((first_part + part) * num_slots + row) * num_columns
    ranks, offsets = tl.arange(0, RANKS), tl.arange(0, COLUMNS)
    xs = x + tokens.to(tl.int64)[:, None] * x_token
    for i in range(tl.program_id(2), tl.load(num_active), tl.num_programs(2)):
        column = tl.load(active + i)
        entry = table + FIELDS * (part * num_columns + column)
        rank = tl.load(entry + 2).to(tl.int32)
        coef = tl.load(weight + column, mask=is_token, other=0)
        if (rank != 0) & (tl.max((coef != 0).to(tl.int32), 0) != 0):
            into = hidden + part * hidden_part + tokens.to(tl.int64)[:, None] * hidden_token
            into += column * hidden_column
            for first in range(0, rank, RANKS):
                is_rank = first + ranks < rank
                a = data + tl.load(entry) + (first + ranks).to(tl.int64)[:, None] * width
                total = tl.zeros((TOKENS, RANKS), tl.float32)
                for start in range(0, width, COLUMNS):
                    is_column = start + offsets < width
                    some_x = tl.load(
                        xs + (start + offsets)[None, :],
                        mask=is_token[:, None] & is_column[None, :], other=0,
                    )  # fmt: skip
                    some_a = tl.load(
                        a + (start + offsets)[None, :],
                        mask=is_rank[:, None] & is_column[None, :], other=0,
                    )  # fmt: skip
                    total += dot(some_x, tl.trans(some_a))
                weighted = tl.where(coef[:, None] == 0, 0.0, coef[:, None] * total)
                mask = is_token[:, None] & is_rank[None, :]
                where = into + (first + ranks)[None, :]
                tl.store(where, weighted.to(hidden.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _expand(  # type: ignore[no-untyped-def]
    y, hidden, weights, data, table, num_active, active, token_row, part_start,
    num_tokens, y_token, num_slots, num_columns, first_part,
    hidden_part, hidden_token, hidden_column,
    FIELDS: tl.constexpr, TOKENS: tl.constexpr, RANKS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """y[t, r] += Σ_k hidden[part, t, k] · B_k[:, r], by ascending column."""
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    part = tl.program_id(1)
    first_row = tl.load(part_start + part)
    num_rows = tl.load(part_start + part + 1) - first_row
    rows = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    is_token, is_row = tokens < num_tokens, rows < num_rows
    row = tl.load(token_row + tokens, mask=is_token, other=0).to(tl.int64)
    weight = weights + ((first_part + part) * num_slots + row) * num_columns
    ranks = tl.arange(0, RANKS)
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    touched = 0
    for i in range(tl.load(num_active)):
        column = tl.load(active + i)
        entry = table + FIELDS * (part * num_columns + column)
        rank = tl.load(entry + 2).to(tl.int32)
        coef = tl.load(weight + column, mask=is_token, other=0)
        if (rank != 0) & (tl.max((coef != 0).to(tl.int32), 0) != 0):
            touched += 1
            source = hidden + part * hidden_part + tokens.to(tl.int64)[:, None] * hidden_token
            source += column * hidden_column
            for first in range(0, rank, RANKS):
                is_rank = first + ranks < rank
                mask = (coef != 0)[:, None] & is_rank[None, :]
                some_h = tl.load(source + (first + ranks)[None, :], mask=mask, other=0)
                b = data + tl.load(entry + 1) + (first + ranks).to(tl.int64)[:, None] * num_rows
                mask = is_rank[:, None] & is_row[None, :]
                some_b = tl.load(b + rows[None, :], mask=mask, other=0)
                product = dot(some_h, some_b)
                total += tl.where(coef[:, None] == 0, 0.0, product)
    if touched != 0:
        into = y + tokens.to(tl.int64)[:, None] * y_token + (first_row + rows)[None, :]
        mask = is_token[:, None] & is_row[None, :]
        before = tl.load(into, mask=mask, other=0)
        tl.store(into, (before.to(tl.float32) + total).to(before.dtype), mask=mask)
