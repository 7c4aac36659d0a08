"""The compiled products of `cpu`: see there for what the arguments mean."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, njit

from taskvectors.kernels import simd
from taskvectors.kernels.blocks import (
    COLUMN,
    FIRST,
    KIND,
    LOW_RANK_BF16,
    NARROW_BF16,
    NARROW_F32,
    PART,
    RANK_TOKENS,
    ROW_BLOCK,
    ROWS,
    SECOND,
    SIZE,
    START,
    THIRD,
    WIDE_BF16,
    WIDE_F32,
    WIDTH,
)
from taskvectors.kernels.simd import next_column, pointer, void_pointer, widened, word


def _compiled(**options: Any) -> Callable[[Any], Any]:
    """Compile when first called; kept on disk where a folder can be written."""

    def wrap(function: Any) -> Any:
        try:
            return njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # numba found no folder for its cache
            return njit(nogil=True, **options)(function)

    return wrap


def _sparse(lanes: int) -> Any:
    """The product for at most `lanes` tokens, side by side in one vector register."""
    new, clear, add, store = simd.register(lanes)

    @_compiled()
    def product(y, x, start, width, counts, position, value, tokens, coef, scratch):  # type: ignore[no-untyped-def]
        packed, total = scratch[: lanes * width], scratch[lanes * width :]
        if len(tokens) < lanes:
            packed[:] = 0
        for lane in range(len(tokens)):
            for i in range(width):
                packed[i * lanes + lane] = x[tokens[lane], i] * coef[lane]
        packed_at, total_at = pointer(packed), pointer(total)
        held, entry = new(), 0
        for begin in range(0, len(counts), ROW_BLOCK):
            end = min(begin + ROW_BLOCK, len(counts))
            for row in range(begin, end):
                clear(held)
                column = -1
                for k in range(entry, entry + counts[row]):
                    column = next_column(column, position[k])
                    add(held, packed_at, column * lanes, widened(value[k]))
                entry += counts[row]
                store(held, total_at, (row - begin) * lanes)
            for lane in range(len(tokens)):
                for row in range(begin, end):
                    y[tokens[lane], start + row] += total[(row - begin) * lanes + lane]

    return product


_sparse_16, _sparse_8, _sparse_1 = _sparse(16), _sparse(8), _sparse(1)


@_compiled()
def _add_sparse(y, x, field, position_type, value_type, tokens, coef, scratch):  # type: ignore[no-untyped-def]
    """One sparse block; the types tell how positions and values are stored."""
    start, rows, width, size = field[START], field[ROWS], field[WIDTH], field[SIZE]
    counts = carray(void_pointer(field[FIRST]), (rows,), np.uint16)
    position = carray(void_pointer(field[SECOND]), (size,), position_type)
    value = carray(void_pointer(field[THIRD]), (size,), value_type)
    done = 0
    while done < len(tokens):
        left = len(tokens) - done
        lanes = min(left, 16 if left > 8 else (8 if left > 1 else 1))
        some, weights = tokens[done : done + lanes], coef[done : done + lanes]
        if left > 8:
            _sparse_16(y, x, start, width, counts, position, value, some, weights, scratch)
        elif left > 1:
            _sparse_8(y, x, start, width, counts, position, value, some, weights, scratch)
        else:
            _sparse_1(y, x, start, width, counts, position, value, some, weights, scratch)
        done += lanes


@_compiled(fastmath={"reassoc", "contract"})
def _dot(a, b):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for i in range(len(a)):
        total += widened(a[i]) * b[i]
    return total


@_compiled(fastmath={"contract"})
def _expand(y, hidden, b):  # type: ignore[no-untyped-def]
    """y += hidden @ b, four ranks at a time."""
    whole = len(hidden) // 4 * 4
    for r in range(0, whole, 4):
        h0, h1, h2, h3 = hidden[r], hidden[r + 1], hidden[r + 2], hidden[r + 3]
        b0, b1, b2, b3 = b[r], b[r + 1], b[r + 2], b[r + 3]
        for i in range(len(y)):
            first = h0 * widened(b0[i]) + h1 * widened(b1[i])
            y[i] += first + (h2 * widened(b2[i]) + h3 * widened(b3[i]))
    for r in range(whole, len(hidden)):
        for i in range(len(y)):
            y[i] += hidden[r] * widened(b[r][i])


@_compiled()
def _add_low_rank(y, x, field, value_type, scale, tokens, coef, scratch):  # type: ignore[no-untyped-def]
    """One low-rank block."""
    start, rows, width, ranks = field[START], field[ROWS], field[WIDTH], field[SIZE]
    a = carray(void_pointer(field[FIRST]), (ranks, width), value_type)
    b = carray(void_pointer(field[SECOND]), (ranks, rows), value_type)
    for begin in range(0, len(tokens), RANK_TOKENS):
        end = min(begin + RANK_TOKENS, len(tokens))
        for r in range(ranks):
            for k in range(begin, end):
                scratch[(k - begin) * ranks + r] = _dot(a[r], x[tokens[k]]) * coef[k] * scale
        for k in range(begin, end):
            hidden = scratch[(k - begin) * ranks : (k - begin + 1) * ranks]
            if coef[k] != 0:
                _expand(y[tokens[k], start : start + rows], hidden, b)


@_compiled()
def add_float32(y, x, fields, scales, bounds, tokens, coef, scratch, skip_ranks):  # type: ignore[no-untyped-def]
    """All blocks of a layer. y, x: float32."""
    for n in range(len(fields)):
        field = fields[n]
        if field[COLUMN] >= len(bounds):
            continue
        begin, end = bounds[field[COLUMN], 0], bounds[field[COLUMN], 1]
        if begin == end:
            continue
        some, kind = tokens[begin:end], field[KIND]
        weights = coef[field[PART] if len(coef) > 1 else 0, begin:end]
        if kind == NARROW_BF16:
            _add_sparse(y, x, field, np.uint8, np.uint16, some, weights, scratch)
        elif kind == WIDE_BF16:
            _add_sparse(y, x, field, np.uint16, np.uint16, some, weights, scratch)
        elif kind == NARROW_F32:
            _add_sparse(y, x, field, np.uint8, np.float32, some, weights, scratch)
        elif kind == WIDE_F32:
            _add_sparse(y, x, field, np.uint16, np.float32, some, weights, scratch)
        elif skip_ranks:
            continue
        elif kind == LOW_RANK_BF16:
            _add_low_rank(y, x, field, np.uint16, scales[n], some, weights, scratch)
        else:
            _add_low_rank(y, x, field, np.float32, scales[n], some, weights, scratch)


@_compiled()
def _rounded(value):  # type: ignore[no-untyped-def]
    """bfloat16 bits of a float32, to nearest, ties to even."""
    bits = word(value)
    if value != value:
        return np.uint16(0x7FC0)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> 16)


@_compiled()
def add_bf16(y, x, fields, scales, bounds, tokens, coef, scratch, skip_ranks):  # type: ignore[no-untyped-def]
    """The same for bits of bfloat16; the sum of all blocks is rounded once, with y."""
    rows, width, out = len(x), x.shape[1], y.shape[1]
    wide = scratch[: rows * width].reshape(rows, width)
    total = scratch[rows * width : rows * (width + out)].reshape(rows, out)
    for t in range(rows):
        for i in range(width):
            wide[t, i] = widened(x[t, i])
    total[:] = 0
    rest = scratch[rows * (width + out) :]
    add_float32(total, wide, fields, scales, bounds, tokens, coef, rest, skip_ranks)
    for t in range(rows):
        for i in range(out):
            y[t, i] = _rounded(widened(y[t, i]) + total[t, i])
