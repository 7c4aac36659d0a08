"""The values of a delta in a file: floats as they are, or codes of 8 bits or 1 bit with scales.

- int8: `value = code * scale`, codes within ±127, one scale per tensor or per row.
- ternary: `value = ±scale`, zero elsewhere, as in ComPEFT (arXiv 2311.13171). The writer's scale is
  the mean magnitude: it has the least squared error (XNOR-Net, arXiv 1603.05279, equation 6).

Only sparse deltas take codes; low-rank factors and dense deltas are then bf16.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from taskvectors.container.dtypes import DTYPES, NAMES, VALUE_NAMES, is_finite
from taskvectors.delta import Array, Delta, DenseDelta, LowRankDelta, Shape, SparseDelta
from taskvectors.errors import InvalidTensor, NonFiniteValue
from taskvectors.format.bitmap import has_padding

CODES = ("int8", "ternary")
VALUE_ENCODINGS = (*VALUE_NAMES, *CODES)
"""What a person says for the encodings of values."""

BESIDE_CODES = "bf16"
"""What low-rank and dense deltas are stored as where sparse ones take codes."""

MAX_SCALE = 65536.0
MAX_CODE = 127
MIN_PER_ROW = 64
"""Values that a row must have on average for a scale of its own."""

_CHUNK = 1 << 20


def cast_values(values: Array, value_dtype: str | None, name: str) -> Array:
    """`values` as fp32, bf16 or fp16 (None keeps them); raises NonFiniteValue, InvalidTensor."""
    if value_dtype is not None:
        if value_dtype not in VALUE_NAMES:
            raise InvalidTensor(
                f"unsupported value dtype {value_dtype!r}; choose {', '.join(VALUE_NAMES)}"
            )
        with np.errstate(over="ignore"):
            values = values.astype(DTYPES[VALUE_NAMES[value_dtype]])
    if not is_finite(values):
        raise NonFiniteValue(f"{name} holds a value that is no finite {NAMES[values.dtype]}")
    return values


def float_encoding(value_dtype: str | None) -> str | None:
    """The encoding of low-rank factors and dense deltas; raises InvalidTensor for no encoding."""
    if value_dtype is not None and value_dtype not in VALUE_ENCODINGS:
        raise InvalidTensor(
            f"unsupported value dtype {value_dtype!r}; choose {', '.join(VALUE_ENCODINGS)}"
        )
    return BESIDE_CODES if value_dtype in CODES else value_dtype


def encode_sparse(
    name: str, delta: SparseDelta, value_dtype: str | None
) -> tuple[Array, dict[str, Array]]:
    """The index to store, and the parts that hold the values: `val`, `sign`, `scale`.

    A zero has no sign, so ternary drops it. Raises InvalidTensor, NonFiniteValue.
    """
    if value_dtype not in CODES:
        return delta.index, {"val": cast_values(delta.values, float_encoding(value_dtype), name)}
    values = cast_values(delta.values, "fp32", name)
    if value_dtype == "int8":
        return delta.index, _encode_int8(name, values, delta.index, delta.shape)
    kept = values != 0
    return delta.index[kept], _encode_ternary(name, values[kept])


def check_values(name: str, parts: Mapping[str, Array], count: int) -> None:
    """Check `count` values of a sparse parameter; raises NonFiniteValue, InvalidTensor.

    parts: as encode_sparse makes them, of checked dtypes and shapes.
    """
    if "scale" not in parts:
        check_finite(name, parts["val"])
        return
    _check_scale(name, parts["scale"])
    if "sign" in parts and has_padding(parts["sign"], count):
        raise InvalidTensor(f"{name}.sign has a bit set beyond its {count} values")
    if "val" in parts and bool((parts["val"] < -MAX_CODE).any()):
        raise InvalidTensor(f"{name}.val holds the code -128; codes must be within ±{MAX_CODE}")


def decode_values(parts: Mapping[str, Array], index: Array, shape: Shape) -> Array:
    """The values [n] at `index`, of the stored dtype or float32. parts: checked by check_values."""
    if "scale" not in parts:
        return parts["val"]
    if "sign" in parts:
        return _decode_ternary(parts["sign"], parts["scale"], len(index))
    return _decode_int8(parts["val"], parts["scale"], index, shape)


def as_stored(name: str, delta: Delta, value_dtype: str | None) -> Delta:
    """The delta that a reader gets back when `delta` is written so.

    Raises InvalidTensor, NonFiniteValue.
    """
    if isinstance(delta, SparseDelta):
        index, parts = encode_sparse(name, delta, value_dtype)
        return SparseDelta(delta.shape, index, decode_values(parts, index, delta.shape))
    encoding = float_encoding(value_dtype)
    if isinstance(delta, LowRankDelta):
        a, b = (cast_values(part, encoding, name) for part in (delta.a, delta.b))
        return replace(delta, a=a, b=b)
    return DenseDelta(cast_values(delta.values, encoding, name))


def check_finite(name: str, *arrays: Array) -> None:
    """Raise NonFiniteValue unless all values of `arrays` are finite."""
    if not all(map(is_finite, arrays)):
        raise NonFiniteValue(f"{name} holds a value that is NaN or infinite")


def _encode_int8(name: str, values: Array, index: Array, shape: Shape) -> dict[str, Array]:
    """Symmetric: the largest magnitude of a row or of the tensor becomes ±127."""
    rows = shape[0] if len(shape) > 1 else 1
    if not 1 < rows <= len(values) / MIN_PER_ROW:
        rows = 1
    lengths = _row_lengths(index, rows, shape)
    peaks = np.zeros(rows, np.float32)
    np.maximum.at(peaks, np.repeat(np.arange(rows), lengths), np.abs(values))
    scale = peaks / np.float32(MAX_CODE)
    _check_scale(name, scale)
    divisors = np.where(scale > 0, scale, np.float32(np.inf))
    codes = np.rint(values / np.repeat(divisors, lengths))
    return {"val": np.clip(codes, -MAX_CODE, MAX_CODE).astype(np.int8), "scale": scale}


def _decode_int8(codes: Array, scale: Array, index: Array, shape: Shape) -> Array:
    values = codes.astype(np.float32)
    values *= np.repeat(scale, _row_lengths(index, len(scale), shape))
    return values


def _row_lengths(index: Array, rows: int, shape: Shape) -> Array:
    """How many of `index` lie in each of `rows` equal parts of the parameter: int64 [rows]."""
    width = math.prod(shape) // max(1, rows)
    bounds = np.searchsorted(index, np.arange(rows + 1, dtype=np.int64) * width)
    return np.diff(bounds)


def _encode_ternary(name: str, values: Array) -> dict[str, Array]:
    scale = np.array([_mean_magnitude(values)], np.float32)
    _check_scale(name, scale)
    return {"sign": np.packbits(values < 0, bitorder="little"), "scale": scale}


def _decode_ternary(sign: Array, scale: Array, count: int) -> Array:
    negative = np.unpackbits(sign, count=count, bitorder="little").view(np.bool_)
    return np.where(negative, -scale, scale).astype(np.float32, copy=False)


def _mean_magnitude(values: Array) -> float:
    """In float64 and from first to last, so that it is the same number everywhere."""
    total = 0.0
    for offset in range(0, len(values), _CHUNK):
        chunk = np.abs(values[offset : offset + _CHUNK], dtype=np.float64)
        chunk[0] += total
        total = float(np.cumsum(chunk)[-1])
    return total / max(1, len(values))


def _check_scale(name: str, scale: Array) -> None:
    check_finite(f"{name}.scale", scale)
    if not bool(((scale >= 0) & (scale <= MAX_SCALE)).all()):
        raise InvalidTensor(
            f"a scale of {name} is outside of 0 to {MAX_SCALE:g}: its values are too large for"
            " int8 and ternary, or the file is broken"
        )
