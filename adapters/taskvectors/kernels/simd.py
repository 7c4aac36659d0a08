"""Vector instructions and raw memory for code that numba compiles.

numba's cache looks at the age of `compiled` only: after a change here, touch that file.
"""

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def _vector(lanes: int) -> Any:
    return ir.VectorType(ir.FloatType(), lanes)


def _splat(builder: Any, value: Any, lanes: int) -> Any:
    undefined = ir.Constant(_vector(lanes), ir.Undefined)
    index = ir.IntType(32)
    one = builder.insert_element(undefined, value, ir.Constant(index, 0))
    mask = ir.Constant(ir.VectorType(index, lanes), [0] * lanes)
    return builder.shuffle_vector(one, undefined, mask)


def _at(builder: Any, pointer: Any, offset: Any, lanes: int) -> Any:
    return builder.bitcast(builder.gep(pointer, [offset]), _vector(lanes).as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def void_pointer(_context: Any, address: Any) -> Any:
    """A pointer to an address."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@intrinsic  # type: ignore[untyped-decorator]
def pointer(_context: Any, array: Any) -> Any:
    """A pointer to the first element of an array; it may be indexed, from 0 on.

    An index into an array is asked each time whether it counts from the end; that takes longer
    than a nonzero does.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.make_array(signature.args[0])(context, builder, arguments[0]).data

    return types.CPointer(array.dtype)(array), generate


@intrinsic  # type: ignore[untyped-decorator]
def widened(_context: Any, value: Any) -> Any:
    """float32 of bfloat16 bits; a float32 stays what it is."""

    def generate(_: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if signature.args[0] == types.float32:
            return arguments[0]
        word = ir.IntType(32)
        bits = builder.shl(builder.zext(arguments[0], word), ir.Constant(word, 16))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(value), generate


@intrinsic  # type: ignore[untyped-decorator]
def word(_context: Any, value: Any) -> Any:
    """The bits of a float32."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(value), generate


@intrinsic  # type: ignore[untyped-decorator]
def next_column(_context: Any, _column: Any, position: Any) -> Any:
    """An increment of 8 bits is added to the column before; a column of 16 bits is itself."""

    def generate(_: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        position = builder.zext(arguments[1], ir.IntType(64))
        is_increment = signature.args[1] == types.uint8
        return builder.add(arguments[0], position) if is_increment else position

    return types.int64(types.int64, position), generate


class Register(NamedTuple):
    """An accumulator of some float32 lanes that the compiler keeps in vector registers.

    new() makes one. clear(r) zeroes it. add(r, pointer, offset, factor): r += factor ·
    pointer[offset: offset + lanes]. store(r, pointer, offset) writes it.
    """

    new: Any
    clear: Any
    add: Any
    store: Any


def register(lanes: int) -> Register:
    """The operations for one number of lanes."""
    vector = _vector(lanes)
    zero = ir.Constant(vector, None)

    @intrinsic  # type: ignore[untyped-decorator]
    def new(_context: Any) -> Any:
        def generate(_: Any, builder: Any, __: Any, ___: Any) -> Any:
            place = cgutils.alloca_once(builder, vector)
            builder.store(zero, place)
            return builder.bitcast(place, ir.FloatType().as_pointer())

        return types.CPointer(types.float32)(), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def clear(_context: Any, held: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            builder.store(zero, builder.bitcast(arguments[0], vector.as_pointer()))
            return context.get_dummy_value()

        return types.void(held), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def add(_context: Any, held: Any, pointer: Any, _offset: Any, _factor: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            held, pointer, offset, factor = arguments
            place = builder.bitcast(held, vector.as_pointer())
            other = builder.load(_at(builder, pointer, offset, lanes), align=4)
            product = builder.fmul(_splat(builder, factor, lanes), other, flags=("contract",))
            total = builder.fadd(product, builder.load(place), flags=("contract",))
            builder.store(total, place)
            return context.get_dummy_value()

        return types.void(held, pointer, types.int64, types.float32), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def store(_context: Any, held: Any, pointer: Any, _offset: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            held, pointer, offset = arguments
            value = builder.load(builder.bitcast(held, vector.as_pointer()))
            builder.store(value, _at(builder, pointer, offset, lanes), align=4)
            return context.get_dummy_value()

        return types.void(held, pointer, types.int64), generate

    return Register(new, clear, add, store)


class Tiles(NamedTuple):
    """Squares of float32 values that are transposed in registers.

    pack(sources, offset, factors, out, at, stride): out[at + i · stride + lane] = factors[lane] ·
    sources[lane][offset + i], for i and lane below the size. add(targets, offset, total, at,
    stride): targets[lane][offset + i] += total[at + i · stride + lane].
    """

    pack: Any
    add: Any


def tiles(size: int) -> Tiles:
    """The operations for 4 or 8 rows and columns."""
    word = ir.IntType(64)

    def address(builder: Any, pointers: Any, lane: int, offset: Any) -> Any:
        """A vector pointer, `offset` floats behind the `lane`-th of some addresses."""
        begin = builder.load(builder.gep(pointers, [ir.Constant(word, lane)]))
        place = builder.inttoptr(begin, ir.FloatType().as_pointer())
        return _at(builder, place, offset, size)

    @intrinsic  # type: ignore[untyped-decorator]
    def pack(
        _context: Any, sources: Any, _offset: Any, factors: Any, out: Any, _begin: Any, _stride: Any
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            sources, offset, factors, out, at, stride = arguments
            rows = []
            for lane in range(size):
                row = builder.load(address(builder, sources, lane, offset), align=4)
                factor = builder.load(builder.gep(factors, [ir.Constant(word, lane)]))
                rows.append(builder.fmul(row, _splat(builder, factor, size)))
            for i, column in enumerate(_transposed(builder, rows)):
                place = builder.add(at, builder.mul(stride, ir.Constant(word, i)))
                builder.store(column, _at(builder, out, place, size), align=4)
            return context.get_dummy_value()

        return types.void(sources, types.int64, factors, out, types.int64, types.int64), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def add(
        _context: Any, targets: Any, _offset: Any, total: Any, _begin: Any, _stride: Any
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            targets, offset, total, at, stride = arguments
            rows = []
            for i in range(size):
                place = builder.add(at, builder.mul(stride, ir.Constant(word, i)))
                rows.append(builder.load(_at(builder, total, place, size), align=4))
            for lane, column in enumerate(_transposed(builder, rows)):
                target = address(builder, targets, lane, offset)
                builder.store(builder.fadd(builder.load(target, align=4), column), target, align=4)
            return context.get_dummy_value()

        return types.void(targets, types.int64, total, types.int64, types.int64), generate

    return Tiles(pack, add)


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """As many vectors as each has lanes, a power of two, transposed by rounds of shuffles."""
    size = len(rows)
    kind, distance = ir.VectorType(ir.IntType(32), size), 1
    while distance < size:
        low = [size + i - distance if i & distance else i for i in range(size)]
        high = [size + i if i & distance else i + distance for i in range(size)]
        new = list(rows)
        for i in range(size):
            if not i & distance:
                pair = rows[i], rows[i + distance]
                new[i] = builder.shuffle_vector(*pair, ir.Constant(kind, low))
                new[i + distance] = builder.shuffle_vector(*pair, ir.Constant(kind, high))
        rows, distance = new, 2 * distance
    return rows
