"""Sparse products on a GPU: every resident vector of a site in one call.

Semantics: y[t, r] += Σ_k C[part(r), row(t), k] · Σ_c Δ_k[r, c] · x[t, c], in float32, rounded to
y's dtype once. x: [T, in]; y: [T, out]. Sums run in one fixed order, without atomics, so the same
step gives the same bits. A zero coefficient selects zero and never multiplies: 0 · inf would be
NaN. Grids follow from shapes alone, never from what a step holds.

Few tokens: they are grouped by vector, and each nonzero meets those that use its vector. `_gather`
writes a sum for each (vector, token) pair, `_combine` weighs and adds them. Many tokens: a tile of
the vector is made dense in registers and multiplied by tensor cores, in `_tiles`.
"""

from dataclasses import dataclass

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from taskvectors.kernels.gpu_step import PAIR_LANES, CoefficientRows, StepBuffers
from taskvectors.kernels.triton_dot import dot

CROW, COL, VAL, PRESENT, SPARSE_FIELDS = range(5)
"""Fields of a vector's entry: where its arrays begin, in elements, and whether it has any."""
NARROW_WIDTH = 65536
"""Up to so many input features, columns are uint16, kept as the bits of int16; else int32."""

GATHER_ROWS, GATHER_CHUNK, COMBINE_ROWS, GATHER_BLOCKS = 16, 16, 512, 16
TILE_TOKENS, TILE_ROWS, TILE_COLUMNS, TILE_CHUNK, TILE_WARPS = 64, 64, 64, 4, 8
TRANSPOSE_FROM = 4
"""From so many tokens on, x is transposed first: a nonzero's tokens then share cache lines."""


@dataclass(frozen=True, eq=False)
class SparseSite:
    """Where one site's sparse vectors lie.

    shape: (out, in). table: int64 [K, SPARSE_FIELDS]. crow: int32, [out + 1] from each entry's
    CROW on, positions relative to COL and VAL. col: int16 bits of uint16, or int32; ascending in
    a row. val: bfloat16, float16 or float32. part_start: int32 [parts + 1], the first output row
    of each, and `out`; first_part: their position among all parts of the model.
    """

    shape: tuple[int, int]
    table: Tensor
    crow: Tensor
    col: Tensor
    val: Tensor
    part_start: Tensor
    first_part: int


@dataclass(frozen=True, eq=False)
class SparseScratch:
    """Memory between kernels, allocated once. sums: float32; x: values of the largest pairing."""

    sums: Tensor
    x: Tensor


def add_sparse(
    y: Tensor,
    x: Tensor,
    site: SparseSite,
    step: StepBuffers,
    coefficients: CoefficientRows,
    scratch: SparseScratch,
) -> None:
    """Add all sparse vectors of `site`; the way is chosen by the shapes alone.

    y: [T, ≥ out], x: [T, in], rows contiguous, float32, bfloat16 or float16.
    """
    _check(y, x, site, step)
    if len(x) == 0:
        return
    mixed = min(step.limits.mixed, step.limits.columns)
    is_paired = len(x) <= step.limits.pair_tokens
    if is_paired and len(x) * mixed * site.shape[0] <= scratch.sums.numel():
        add_pairs(y, x, site, step, coefficients, scratch)
    else:
        add_tiles(y, x, site, step, coefficients)


def add_pairs(
    y: Tensor,
    x: Tensor,
    site: SparseSite,
    step: StepBuffers,
    coefficients: CoefficientRows,
    scratch: SparseScratch,
) -> None:
    """For few tokens: at most `pair_tokens`, and sums for all their pairs fit the scratch."""
    (tokens, width), rows, parts = x.shape, site.shape[0], len(site.part_start) - 1
    if tokens >= TRANSPOSE_FROM:
        assert scratch.x.dtype == x.dtype
        assert scratch.x.numel() >= x.numel()
        transposed = scratch.x[: x.numel()].view(width, tokens)
        x = transposed.copy_(x.T).T
    _gather[(triton.cdiv(rows, GATHER_ROWS), min(step.limits.blocks, GATHER_BLOCKS))](
        scratch.sums, x, site.crow, site.col, site.val, site.table,
        step.num_blocks, step.blocks, step.pair_token, rows, x.stride(0), x.stride(1),
        NARROW=site.col.dtype == torch.int16, FIELDS=SPARSE_FIELDS,
        ROWS=GATHER_ROWS, LANES=PAIR_LANES, CHUNK=GATHER_CHUNK,
    )  # fmt: skip
    _combine[(tokens, triton.cdiv(rows, COMBINE_ROWS))](
        y, scratch.sums, coefficients.weights, site.table, step.token_row,
        step.token_start, step.token_pair, step.pair_column, site.part_start,
        rows, y.stride(0), *coefficients.weights.shape[1:], site.first_part, parts,
        FIELDS=SPARSE_FIELDS, ROWS=COMBINE_ROWS,
    )  # fmt: skip


def add_tiles(
    y: Tensor, x: Tensor, site: SparseSite, step: StepBuffers, coefficients: CoefficientRows
) -> None:
    """For many tokens."""
    (tokens, width), rows, parts = x.shape, site.shape[0], len(site.part_start) - 1
    assert coefficients.weights.numel() < 1 << 31
    _tiles[(triton.cdiv(tokens, TILE_TOKENS), triton.cdiv(rows, TILE_ROWS))](
        y, x, coefficients.weights, site.crow, site.col, site.val, site.table,
        step.num_active, step.active, step.token_row, site.part_start,
        tokens, rows, width, y.stride(0), x.stride(0),
        *coefficients.weights.shape[1:], site.first_part, parts,
        NARROW=site.col.dtype == torch.int16, FIELDS=SPARSE_FIELDS,
        TOKENS=TILE_TOKENS, ROWS=TILE_ROWS, COLUMNS=TILE_COLUMNS, CHUNK=TILE_CHUNK,
        num_warps=TILE_WARPS,
    )  # fmt: skip


def _check(y: Tensor, x: Tensor, site: SparseSite, step: StepBuffers) -> None:
    rows, width = site.shape
    assert x.dim() == y.dim() == 2
    assert len(x) == len(y) <= step.limits.tokens
    assert x.shape[1] == width, f"{x.shape[1]} input features; the site has {width}"
    assert y.shape[1] >= rows > 0
    assert x.stride(1) == y.stride(1) == 1
    assert x.dtype == y.dtype
    assert site.crow.dtype == torch.int32
    assert site.table.dtype == torch.int64
    assert site.table.shape == (step.limits.columns, SPARSE_FIELDS)
    assert site.table.is_contiguous()
    narrow = width <= NARROW_WIDTH
    assert site.col.dtype == (torch.int16 if narrow else torch.int32)
    assert site.val.dtype in (torch.bfloat16, torch.float16, torch.float32)


@triton.jit
def part_of(rows, part_start, num_parts):  # type: ignore[no-untyped-def]
    """The part that each output row belongs to."""
    part = rows * 0
    for i in range(1, num_parts):
        part += (rows >= tl.load(part_start + i)).to(tl.int32)
    return part


@triton.jit  # type: ignore[untyped-decorator]
def _gather(  # type: ignore[no-untyped-def]
    sums, x, crow, col, val, table, num_blocks, blocks, pair_token,
    num_rows, x_token, x_column,
    NARROW: tl.constexpr, FIELDS: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """sums[pair, r] = Σ_c Δ[r, c] · x[token(pair), c]; a program takes every n-th block."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = rows < num_rows
    lanes, steps = tl.arange(0, LANES), tl.arange(0, CHUNK)
    for block in range(tl.program_id(1), tl.load(num_blocks), tl.num_programs(1)):
        entry = table + FIELDS * tl.load(blocks + 3 * block)
        if tl.load(entry + 3) != 0:
            pairs = tl.load(blocks + 3 * block + 1) + lanes
            is_pair = lanes < tl.load(blocks + 3 * block + 2)
            tokens = tl.load(pair_token + pairs, mask=is_pair, other=0).to(tl.int64)
            xs = x + tokens[None, None, :] * x_token
            at = crow + tl.load(entry)
            begin = tl.load(at + rows, mask=is_row, other=0)
            size = tl.load(at + rows + 1, mask=is_row, other=0) - begin
            total = tl.zeros((ROWS, LANES), tl.float32)
            for k in range(0, tl.max(size, 0), CHUNK):
                here = (k + steps)[None, :] < size[:, None]
                where = begin[:, None] + (k + steps)[None, :]
                column = tl.load(col + tl.load(entry + 1) + where, mask=here, other=0).to(tl.int32)
                if NARROW:
                    column = column & 0xFFFF
                value = tl.load(val + tl.load(entry + 2) + where, mask=here, other=0)
                source = xs + column.to(tl.int64)[:, :, None] * x_column
                mask = here[:, :, None] & is_pair[None, None, :]
                product = value.to(tl.float32)[:, :, None] * tl.load(source, mask=mask, other=0).to(
                    tl.float32
                )
                total += tl.sum(product, axis=1)
            into = sums + pairs.to(tl.int64)[None, :] * num_rows + rows[:, None]
            tl.store(into, total, mask=is_row[:, None] & is_pair[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _combine(  # type: ignore[no-untyped-def]
    y, sums, weights, table, token_row, token_start, token_pair, pair_column, part_start,
    num_rows, y_token, num_slots, num_columns, first_part, num_parts,
    FIELDS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """y[t, r] += Σ over the pairs of t of C · sums[pair, r], by ascending column."""
    token = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    is_row = rows < num_rows
    begin, end = tl.load(token_start + token), tl.load(token_start + token + 1)
    if begin < end:
        part = first_part + part_of(rows, part_start, num_parts)
        weight = (
            weights + (part.to(tl.int64) * num_slots + tl.load(token_row + token)) * num_columns
        )
        total = tl.zeros((ROWS,), tl.float32)
        for i in range(begin, end):
            pair = tl.load(token_pair + i).to(tl.int64)
            column = tl.load(pair_column + pair)
            if tl.load(table + FIELDS * column + 3) != 0:
                coef = tl.load(weight + column, mask=is_row, other=0)
                found = tl.load(sums + pair * num_rows + rows, mask=is_row, other=0)
                total += tl.where(coef == 0, 0.0, coef * found)
        into = y + token * y_token + rows
        before = tl.load(into, mask=is_row, other=0)
        tl.store(into, (before.to(tl.float32) + total).to(before.dtype), mask=is_row)


@triton.jit  # type: ignore[untyped-decorator]
def _tiles(  # type: ignore[no-untyped-def]
    y, x, weights, crow, col, val, table, num_active, active, token_row, part_start,
    num_tokens, num_rows, width, y_token, x_token, num_slots, num_columns, first_part, num_parts,
    NARROW: tl.constexpr, FIELDS: tl.constexpr, TOKENS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A tile of y; vectors that none of its tokens uses are passed over."""
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    is_token, is_row = tokens < num_tokens, rows < num_rows
    is_output = is_token[:, None] & is_row[None, :]
    row = tl.load(token_row + tokens, mask=is_token, other=0)
    part = first_part + part_of(rows, part_start, num_parts)
    weight = (part[None, :] * num_slots + row[:, None]) * num_columns
    xs = x + tokens.to(tl.int64)[:, None] * x_token
    steps, offsets = tl.arange(0, CHUNK), tl.arange(0, COLUMNS)
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    touched = 0
    for i in range(tl.load(num_active)):
        column = tl.load(active + i)
        entry = table + FIELDS * column
        coef = tl.load(weights + (weight + column), mask=is_output, other=0)
        used = tl.max(tl.max((coef != 0).to(tl.int32), 1), 0)
        if (used != 0) & (tl.load(entry + 3) != 0):
            touched += 1
            at = crow + tl.load(entry)
            cursor = tl.load(at + rows, mask=is_row, other=0)
            end = tl.load(at + rows + 1, mask=is_row, other=0)
            product = tl.zeros((TOKENS, ROWS), tl.float32)
            for start in range(0, width, COLUMNS):
                tile = tl.zeros((ROWS, COLUMNS), tl.float32)
                more = 1
                while more != 0:
                    where = cursor[:, None] + steps[None, :]
                    here = where < end[:, None]
                    found = tl.load(col + tl.load(entry + 1) + where, mask=here, other=0)
                    place = found.to(tl.int32)
                    if NARROW:
                        place = place & 0xFFFF
                    here = here & (place < start + COLUMNS)
                    value = tl.load(val + tl.load(entry + 2) + where, mask=here, other=0)
                    hit = (tl.where(here, place, -1) - start)[:, :, None] == offsets[None, None, :]
                    tile += tl.sum(tl.where(hit, value.to(tl.float32)[:, :, None], 0.0), axis=1)
                    taken = tl.sum(here.to(tl.int32), 1)
                    cursor += taken
                    more = (tl.max(taken, 0) == CHUNK).to(tl.int32)
                mask = is_token[:, None] & (start + offsets < width)[None, :]
                found_x = tl.load(xs + (start + offsets)[None, :], mask=mask, other=0)
                dense = tl.trans(tile).to(found_x.dtype)
                product += dot(found_x, dense)
            total += tl.where(coef == 0, 0.0, coef * product)
    if touched != 0:
        into = y + tokens.to(tl.int64)[:, None] * y_token + rows[None, :]
        before = tl.load(into, mask=is_output, other=0)
        tl.store(into, (before.to(tl.float32) + total).to(before.dtype), mask=is_output)
