"""The compiled products of `cpu`: see there for what the arguments mean."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, njit

from taskvectors.kernels import simd
from taskvectors.kernels.blocks import (
    COLUMN,
    FIELDS,
    FIRST,
    FOURTH,
    GROUPS,
    KIND,
    LOW_RANK_BF16,
    MOST_LANES,
    NARROW_BF16,
    NARROW_F32,
    PART,
    ROWS,
    SECOND,
    SIZE,
    START,
    THIRD,
    WIDE_BF16,
    WIDE_F32,
    WIDTH,
)
from taskvectors.kernels.simd import (
    next_column,
    pointer,
    void_pointer,
    widened,
    word,
)

LEAST_TILE = 6
"""From so many tokens on, they are packed for a low-rank delta."""


def _compiled(**options: Any) -> Callable[[Any], Any]:
    """Compile when first called; kept on disk where a folder can be written."""

    def wrap(function: Any) -> Any:
        try:
            return njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # numba found no folder for its cache
            return njit(nogil=True, **options)(function)

    return wrap


def _gathering(size: int) -> tuple[Any, Any]:
    """Between the rows of tokens and their lanes, by squares of `size`."""
    pack_tile, add_tile = simd.tiles(size)

    @_compiled()
    def pack(x, width, lanes, tokens, coef, packed, sources, factors):  # type: ignore[no-untyped-def]
        """packed[i · lanes + lane] = coef[lane] · x[tokens[lane], i]; lanes without a token hold
        any.

        `lanes` is a multiple of `size`. sources: int64 [16] and factors: float32 [16] are for its
        use.
        """
        item, pitch = x.itemsize, x.shape[1]
        for lane in range(lanes):
            known = lane < len(tokens)
            sources[lane] = x.ctypes.data + item * pitch * tokens[lane if known else 0]
            factors[lane] = coef[lane] if known else np.float32(0)
        whole = width // size * size
        for first in range(0, lanes, size):
            some, weights = pointer(sources[first:]), pointer(factors[first:])
            out = pointer(packed)
            for i in range(0, whole, size):
                pack_tile(some, i, weights, out, i * lanes + first, lanes)
        for i in range(whole, width):
            for lane in range(len(tokens)):
                packed[i * lanes + lane] = x[tokens[lane], i] * coef[lane]

    @_compiled()
    def unpack(y, start, rows, lanes, tokens, total, targets, nowhere):  # type: ignore[no-untyped-def]
        """y[tokens[lane], start + r] += total[r · lanes + lane].

        nowhere: as long as a row of y, for lanes without a token.
        """
        item, pitch = y.itemsize, y.shape[1]
        for lane in range(lanes):
            known = lane < len(tokens)
            into = y.ctypes.data + item * (pitch * tokens[lane if known else 0] + start)
            targets[lane] = into if known else nowhere.ctypes.data
        whole = rows // size * size
        for first in range(0, min(lanes, len(tokens)), size):
            some, source = pointer(targets[first:]), pointer(total)
            for r in range(0, whole, size):
                add_tile(some, r, source, r * lanes + first, lanes)
        for r in range(whole, rows):
            for lane in range(len(tokens)):
                y[tokens[lane], start + r] += total[r * lanes + lane]

    return pack, unpack


_pack_4, _unpack_4 = _gathering(4)
_pack, _unpack = _gathering(8)


def _runs(lanes: int) -> Any:
    """The product of one sparse matrix with at most `lanes` packed tokens."""
    new, clear, add, store = simd.register(lanes)

    @_compiled()
    def product(order, lengths, position, value, packed, total):  # type: ignore[no-untyped-def]
        packed, total = pointer(packed), pointer(total)
        position, value = pointer(position), pointer(value)
        one, two = new(), new()
        run = entry = 0
        for group in range(len(lengths)):
            length, number = int(lengths[group, 0]), int(lengths[group, 1])
            for _ in range(number // 2):
                clear(one)
                clear(two)
                column = other = -1
                for k in range(entry, entry + length):
                    column = next_column(column, position[k])
                    other = next_column(other, position[k + length])
                    add(one, packed, column * lanes, widened(value[k]))
                    add(two, packed, other * lanes, widened(value[k + length]))
                store(one, total, np.int64(order[run]) * lanes)
                store(two, total, np.int64(order[run + 1]) * lanes)
                entry += 2 * length
                run += 2
            if number % 2:
                clear(one)
                column = -1
                for k in range(entry, entry + length):
                    column = next_column(column, position[k])
                    add(one, packed, column * lanes, widened(value[k]))
                store(one, total, np.int64(order[run]) * lanes)
                entry += length
                run += 1

    return product


_runs_16, _runs_8, _runs_4, _runs_1 = _runs(16), _runs(8), _runs(4), _runs(1)


@_compiled()
def _lanes(left):  # type: ignore[no-untyped-def]
    """How many lanes the next of `left` tokens take."""
    return 16 if left > 8 else (8 if left > 4 else (4 if left > 1 else 1))


@_compiled()
def _add_sparse(y, x, field, position_type, value_type, tokens, coef, keep, scratch, lane_work):  # type: ignore[no-untyped-def]
    """One sparse block; the types tell how positions and values are stored.

    keep: the tokens are packed already, by the block before.
    """
    start, rows, width, size = field[START], field[ROWS], field[WIDTH], field[SIZE]
    order = carray(void_pointer(field[FIRST]), (rows,), np.uint16)
    lengths = carray(void_pointer(field[SECOND]), (field[GROUPS], 2), np.int32)
    position = carray(void_pointer(field[THIRD]), (size,), position_type)
    value = carray(void_pointer(field[FOURTH]), (size,), value_type)
    factors, packed, total, rest = _split(scratch, width, rows)
    done = 0
    while done < len(tokens):
        lanes = _lanes(len(tokens) - done)
        some, weights = tokens[done : done + lanes], coef[done : done + lanes]
        if lanes == 1:
            row = x[some[0]]
            for i in range(width):
                packed[i] = row[i] * weights[0]
            _runs_1(order, lengths, position, value, packed, total)
            into = y[some[0], start : start + rows]
            for r in range(rows):
                into[r] += total[r]
        elif lanes == 4:
            if not keep or len(tokens) > MOST_LANES:
                _pack_4(x, width, lanes, some, weights, packed, lane_work, factors)
            _runs_4(order, lengths, position, value, packed, total)
            _unpack_4(y, start, rows, lanes, some, total, lane_work, rest)
        else:
            if not keep or len(tokens) > MOST_LANES:
                _pack(x, width, lanes, some, weights, packed, lane_work, factors)
            if lanes == MOST_LANES:
                _runs_16(order, lengths, position, value, packed, total)
            else:
                _runs_8(order, lengths, position, value, packed, total)
            _unpack(y, start, rows, lanes, some, total, lane_work, rest)
        done += lanes


@_compiled()
def _split(scratch, width, rows):  # type: ignore[no-untyped-def]
    """Memory for the factors, the packed tokens and their outputs, and the rest."""
    outputs = MOST_LANES * (1 + width)
    end = outputs + MOST_LANES * rows
    packed, total = scratch[MOST_LANES:outputs], scratch[outputs:end]
    return scratch[:MOST_LANES], packed, total, scratch[end:]


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


def _tiles(lanes: int) -> Any:
    """total = b · (a · packed) for packed tokens, four ranks or four outputs at a time."""
    new, clear, add, store = simd.register(lanes)

    @_compiled()
    def multiply(matrix, rows, width, row_pitch, pitch, source, out):  # type: ignore[no-untyped-def]
        """out[r] = Σ_i matrix[r · row_pitch + i · pitch] · source[i], lanes side by side."""
        source, out, matrix = pointer(source), pointer(out), pointer(matrix)
        c0, c1, c2, c3 = new(), new(), new(), new()
        for r in range(0, rows, 4):
            last = rows - 1  # what is beyond the end is computed as the last, and again
            r0, r1 = r, min(r + 1, last)
            r2, r3 = min(r + 2, last), min(r + 3, last)
            clear(c0)
            clear(c1)
            clear(c2)
            clear(c3)
            m0, m1, m2, m3 = r0 * row_pitch, r1 * row_pitch, r2 * row_pitch, r3 * row_pitch
            for i in range(width):
                at = i * pitch
                add(c0, source, i * lanes, matrix[m0 + at])
                add(c1, source, i * lanes, matrix[m1 + at])
                add(c2, source, i * lanes, matrix[m2 + at])
                add(c3, source, i * lanes, matrix[m3 + at])
            store(c3, out, r3 * lanes)
            store(c2, out, r2 * lanes)
            store(c1, out, r1 * lanes)
            store(c0, out, r0 * lanes)

    return multiply


_tiles_16, _tiles_8 = _tiles(16), _tiles(8)


@_compiled()
def _widen(source, factor, out):  # type: ignore[no-untyped-def]
    """out = factor · source, both flat."""
    for i in range(len(source)):
        out[i] = widened(source[i]) * factor


@_compiled()
def _add_low_rank(y, x, field, value_type, scale, tokens, coef, keep, scratch, lane_work):  # type: ignore[no-untyped-def]
    """One low-rank block."""
    start, rows, width, ranks = field[START], field[ROWS], field[WIDTH], field[SIZE]
    a = carray(void_pointer(field[FIRST]), (ranks, width), value_type)
    b = carray(void_pointer(field[SECOND]), (ranks, rows), value_type)
    if len(tokens) < LEAST_TILE:
        for k in range(len(tokens)):
            for r in range(ranks):
                scratch[r] = _dot(a[r], x[tokens[k]]) * coef[k] * scale
            if coef[k] != 0:
                _expand(y[tokens[k], start : start + rows], scratch[:ranks], b)
        return
    factors, packed, total, rest = _split(scratch, width, rows)
    wide_a, rest = rest[: ranks * width], rest[ranks * width :]
    wide_b, rest = rest[: ranks * rows], rest[ranks * rows :]
    hidden, rest = rest[: ranks * MOST_LANES], rest[ranks * MOST_LANES :]
    _widen(a.reshape(a.size), np.float32(1), wide_a)
    _widen(b.reshape(b.size), scale, wide_b)
    for done in range(0, len(tokens), MOST_LANES):
        lanes = max(8, _lanes(len(tokens) - done))
        some, weights = tokens[done : done + lanes], coef[done : done + lanes]
        if not keep or len(tokens) > MOST_LANES:
            _pack(x, width, lanes, some, weights, packed, lane_work, factors)
        if lanes == MOST_LANES:
            _tiles_16(wide_a, ranks, width, width, 1, packed, hidden)
            _tiles_16(wide_b, rows, ranks, 1, rows, hidden, total)
        else:
            _tiles_8(wide_a, ranks, width, width, 1, packed, hidden)
            _tiles_8(wide_b, rows, ranks, 1, rows, hidden, total)
        _unpack(y, start, rows, lanes, some, total, lane_work, rest)


@_compiled()
def _add_blocks(y, x, table, groups, scratch, lane_work):  # type: ignore[no-untyped-def]
    """All blocks of a layer. y, x: float32."""
    place = carray(void_pointer(table), (3,), np.int64)
    fields = carray(void_pointer(place[0]), (place[1], FIELDS), np.int64)
    scales = carray(void_pointer(place[2]), (place[1],), np.float32)
    place = carray(void_pointer(groups), (6,), np.int64)
    bounds = carray(void_pointer(place[0]), (place[1], 2), np.int32)
    tokens = carray(void_pointer(place[2]), (place[3],), np.int32)
    coef = carray(void_pointer(place[4]), (place[5], place[3]), np.float32)
    packed = -1
    for n in range(len(fields)):
        field = fields[n]
        if field[COLUMN] >= len(bounds):
            continue
        begin, end = bounds[field[COLUMN], 0], bounds[field[COLUMN], 1]
        if begin == end:
            continue
        some, kind = tokens[begin:end], field[KIND]
        weights = coef[field[PART] if len(coef) > 1 else 0, begin:end]
        keep = len(coef) == 1 and packed == field[COLUMN]
        packed = field[COLUMN] if kind <= WIDE_F32 or end - begin >= LEAST_TILE else -1
        if kind == NARROW_BF16:
            _add_sparse(y, x, field, np.uint8, np.uint16, some, weights, keep, scratch, lane_work)
        elif kind == WIDE_BF16:
            _add_sparse(y, x, field, np.uint16, np.uint16, some, weights, keep, scratch, lane_work)
        elif kind == NARROW_F32:
            _add_sparse(y, x, field, np.uint8, np.float32, some, weights, keep, scratch, lane_work)
        elif kind == WIDE_F32:
            _add_sparse(y, x, field, np.uint16, np.float32, some, weights, keep, scratch, lane_work)
        elif kind == LOW_RANK_BF16:
            _add_low_rank(
                y, x, field, np.uint16, scales[n], some, weights, keep, scratch, lane_work
            )
        else:
            _add_low_rank(
                y, x, field, np.float32, scales[n], some, weights, keep, scratch, lane_work
            )


@_compiled()
def _rounded(value):  # type: ignore[no-untyped-def]
    """bfloat16 bits of a float32, to nearest, ties to even."""
    bits = word(value)
    if value != value:
        return np.uint16(0x7FC0)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> 16)


@_compiled()
def add_float32(y, x, rows, out, width, table, groups, scratch, lane_work):  # type: ignore[no-untyped-def]
    """All blocks of a layer. y, x, table and groups are addresses; y and x of float32."""
    y = carray(void_pointer(y), (rows, out), np.float32)
    x = carray(void_pointer(x), (rows, width), np.float32)
    _add_blocks(y, x, table, groups, scratch, lane_work)


@_compiled()
def add_bf16(y, x, rows, out, width, table, groups, scratch, lane_work):  # type: ignore[no-untyped-def]
    """The same for bits of bfloat16; the sum of all blocks is rounded once, with y."""
    y = carray(void_pointer(y), (rows, out), np.uint16)
    x = carray(void_pointer(x), (rows, width), np.uint16)
    wide = scratch[: rows * width].reshape(rows, width)
    total = scratch[rows * width : rows * (width + out)].reshape(rows, out)
    for t in range(rows):
        for i in range(width):
            wide[t, i] = widened(x[t, i])
    total[:] = 0
    rest = scratch[rows * (width + out) :]
    _add_blocks(total, wide, table, groups, rest, lane_work)
    for t in range(rows):
        for i in range(out):
            y[t, i] = _rounded(widened(y[t, i]) + total[t, i])
