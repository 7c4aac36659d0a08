"""Dense deltas on a GPU: matrices, biases, rows of an embedding, and norms.

Semantics, in float32, rounded to y's dtype once:
    add_dense: y[t] += Σ_k C[part, row(t), k] · (D_k x[t] + b_k) for each part of the site.
    add_dense_rows: y[t] += Σ_k C · D_k[ids[t]].
    add_norm: y[t] += Σ_k C · b_k ⊙ x[t] / sqrt(mean(x[t]²) + eps).
A zero coefficient selects zero and never multiplies. Grids follow from shapes alone.
"""

from dataclasses import dataclass

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from taskvectors.kernels.gpu_step import CoefficientRows, StepBuffers
from taskvectors.kernels.triton_dot import dot

MATRIX_AT, HAS_MATRIX, VECTOR_AT, HAS_VECTOR, DENSE_FIELDS = range(5)
"""Fields of an entry: where a part's matrix and vector begin, in elements, and whether they do."""

TOKENS, COLUMNS, ROWS, DIMS = 16, 64, 64, 256


@dataclass(frozen=True, eq=False)
class DenseSite:
    """Where one site's dense deltas lie.

    shape: (out, in). table: int64 [parts, K, DENSE_FIELDS]. data: values of the engine's dtype.
    part_start: int32 [parts + 1]; most_rows: of the largest part; first_part: their position
    among all parts of the model.
    """

    shape: tuple[int, int]
    table: Tensor
    data: Tensor
    part_start: Tensor
    most_rows: int
    first_part: int


def add_dense(
    y: Tensor, x: Tensor, site: DenseSite, step: StepBuffers, coefficients: CoefficientRows
) -> None:
    """Add all dense matrices and biases of `site`. y: [T, ≥ out], x: [T, in], rows contiguous."""
    rows, width = site.shape
    assert x.dim() == y.dim() == 2
    assert len(x) == len(y) <= step.limits.tokens
    assert x.shape[1] == width
    assert y.shape[1] >= rows
    assert x.stride(1) == y.stride(1) == 1
    assert x.dtype == y.dtype == site.data.dtype
    if len(x) == 0:
        return
    grid = (triton.cdiv(len(x), TOKENS), len(site.table), triton.cdiv(site.most_rows, ROWS))
    _matrices[grid](
        y, x, coefficients.weights, site.data, site.table,
        step.num_active, step.active, step.token_row, site.part_start,
        len(x), width, y.stride(0), x.stride(0), *coefficients.weights.shape[1:], site.first_part,
        FIELDS=DENSE_FIELDS, TOKENS=TOKENS, ROWS=ROWS, COLUMNS=COLUMNS,
    )  # fmt: skip


def add_dense_rows(
    y: Tensor, ids: Tensor, site: DenseSite, step: StepBuffers, coefficients: CoefficientRows
) -> None:
    """Add the rows `ids` [T] of all matrices of an embedding. y: [T, dim], rows contiguous."""
    rows, dim = site.shape
    assert y.shape == (len(ids), dim)
    assert y.stride(1) == ids.stride(0) == 1
    assert len(ids) <= step.limits.tokens
    if len(ids) == 0:
        return
    _rows[(len(ids), triton.cdiv(dim, DIMS))](
        y, ids, coefficients.weights, site.data, site.table,
        step.num_active, step.active, step.token_row,
        rows, dim, y.stride(0), *coefficients.weights.shape[1:], site.first_part,
        FIELDS=DENSE_FIELDS, DIMS=DIMS,
    )  # fmt: skip


def add_norm(
    y: Tensor,
    x: Tensor,
    eps: float,
    site: DenseSite,
    step: StepBuffers,
    coefficients: CoefficientRows,
) -> None:
    """Add all deltas of a norm. y, x: [T, heads, dim], the last dimension contiguous."""
    tokens, heads, dim = x.shape
    assert y.shape == x.shape
    assert dim == site.shape[0]
    assert tokens <= step.limits.tokens
    assert x.stride(2) == y.stride(2) == 1
    if x.numel() == 0:
        return
    _norms[(tokens, heads)](
        y, x, coefficients.weights, site.data, site.table,
        step.num_active, step.active, step.token_row,
        dim, eps, y.stride(0), y.stride(1), x.stride(0), x.stride(1),
        *coefficients.weights.shape[1:], site.first_part,
        FIELDS=DENSE_FIELDS, DIMS=triton.next_power_of_2(dim),
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _matrices(  # type: ignore[no-untyped-def]
    y, x, weights, data, table, num_active, active, token_row, part_start,
    num_tokens, width, y_token, x_token, num_slots, num_columns, first_part,
    FIELDS: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A tile of one part of y; vectors that none of its tokens uses are passed over."""
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    part = tl.program_id(1)
    first_row = tl.load(part_start + part)
    num_rows = tl.load(part_start + part + 1) - first_row
    rows = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    is_token, is_row = tokens < num_tokens, rows < num_rows
    row = tl.load(token_row + tokens, mask=is_token, other=0).to(tl.int64)
    weight = weights + ((first_part + part) * num_slots + row) * num_columns
    offsets = tl.arange(0, COLUMNS)
    xs = x + tokens.to(tl.int64)[:, None] * x_token
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    touched = 0
    for i in range(tl.load(num_active)):
        column = tl.load(active + i)
        entry = table + FIELDS * (part * num_columns + column)
        has_matrix, has_vector = tl.load(entry + 1), tl.load(entry + 3)
        coef = tl.load(weight + column, mask=is_token, other=0)
        used = tl.max((coef != 0).to(tl.int32), 0)
        if (used != 0) & (has_matrix + has_vector != 0):
            touched += 1
            product = tl.zeros((TOKENS, ROWS), tl.float32)
            if has_matrix != 0:
                matrix = data + tl.load(entry) + rows.to(tl.int64)[:, None] * width
                for start in range(0, width, COLUMNS):
                    is_column = start + offsets < width
                    some_x = tl.load(
                        xs + (start + offsets)[None, :],
                        mask=is_token[:, None] & is_column[None, :], other=0,
                    )  # fmt: skip
                    some = tl.load(
                        matrix + (start + offsets)[None, :],
                        mask=is_row[:, None] & is_column[None, :], other=0,
                    )  # fmt: skip
                    product += dot(some_x, tl.trans(some))
            if has_vector != 0:
                bias = tl.load(data + tl.load(entry + 2) + rows, mask=is_row, other=0)
                product += bias.to(tl.float32)[None, :]
            total += tl.where(coef[:, None] == 0, 0.0, coef[:, None] * product)
    if touched != 0:
        into = y + tokens.to(tl.int64)[:, None] * y_token + (first_row + rows)[None, :]
        mask = is_token[:, None] & is_row[None, :]
        before = tl.load(into, mask=mask, other=0)
        tl.store(into, (before.to(tl.float32) + total).to(before.dtype), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _rows(  # type: ignore[no-untyped-def]
    y, ids, weights, data, table, num_active, active, token_row,
    num_rows, dim, y_token, num_slots, num_columns, first_part,
    FIELDS: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """A stretch of one token's row of y."""
    token = tl.program_id(0).to(tl.int64)
    dims = tl.program_id(1) * DIMS + tl.arange(0, DIMS)
    is_dim = dims < dim
    row = tl.load(ids + token).to(tl.int64)
    weight = (
        weights + (first_part * num_slots + tl.load(token_row + token)).to(tl.int64) * num_columns
    )
    total = tl.zeros((DIMS,), tl.float32)
    touched = 0
    for i in range(tl.load(num_active)):
        column = tl.load(active + i)
        coef = tl.load(weight + column)
        entry = table + FIELDS * column
        if (coef != 0) & (row >= 0) & (row < num_rows) & (tl.load(entry + 1) != 0):
            touched += 1
            found = tl.load(data + tl.load(entry) + row * dim + dims, mask=is_dim, other=0)
            total += coef * found.to(tl.float32)
    if touched != 0:
        into = y + token * y_token + dims
        before = tl.load(into, mask=is_dim, other=0)
        tl.store(into, (before.to(tl.float32) + total).to(before.dtype), mask=is_dim)


@triton.jit  # type: ignore[untyped-decorator]
def _norms(  # type: ignore[no-untyped-def]
    y, x, weights, data, table, num_active, active, token_row,
    dim, eps, y_token, y_head, x_token, x_head, num_slots, num_columns, first_part,
    FIELDS: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """One head of one token."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dims = tl.arange(0, DIMS)
    is_dim = dims < dim
    weight = (
        weights + (first_part * num_slots + tl.load(token_row + token)).to(tl.int64) * num_columns
    )
    delta = tl.zeros((DIMS,), tl.float32)
    touched = 0
    for i in range(tl.load(num_active)):
        column = tl.load(active + i)
        coef = tl.load(weight + column)
        entry = table + FIELDS * column
        if (coef != 0) & (tl.load(entry + 3) != 0):
            touched += 1
            found = tl.load(data + tl.load(entry + 2) + dims, mask=is_dim, other=0)
            delta += coef * found.to(tl.float32)
    if touched != 0:
        source = x + token * x_token + head * x_head + dims
        wide = tl.load(source, mask=is_dim, other=0).to(tl.float32)
        normal = wide / tl.sqrt(tl.sum(wide * wide, axis=0) / dim + eps)
        into = y + token * y_token + head * y_head + dims
        before = tl.load(into, mask=is_dim, other=0)
        tl.store(into, (before.to(tl.float32) + normal * delta).to(before.dtype), mask=is_dim)
