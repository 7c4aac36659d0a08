"""One parameter of a task vector file: the tensors that hold it, checked by the header alone."""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from taskvectors.container import Container, TensorInfo, check_shape
from taskvectors.container.dtypes import EXACT_DTYPES, INDEX_DTYPES, VALUE_DTYPES, VALUE_NAMES
from taskvectors.delta import Shape
from taskvectors.errors import InvalidHeader, InvalidIndex, InvalidTensor
from taskvectors.format.bitmap import num_bytes
from taskvectors.format.gaps import ESCAPE
from taskvectors.format.values import MAX_SCALE

MAX_RANK = 4096

Kind: TypeAlias = Literal["sparse", "low_rank", "dense"]
EXCEPTION_PARTS = ("exc_idx", "exc")
PARTS: Mapping[str, tuple[str, ...]] = {
    "sparse": ("idx", "bits", "val", "sign", "scale", *EXCEPTION_PARTS),
    "low_rank": ("lora_A", "lora_B"),
    "dense": ("delta", *EXCEPTION_PARTS),
}
"""The tensors that a parameter of a kind may have: `{name}.{part}`."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,511}")
_WORDS: Mapping[str, str] = {dtype: word for word, dtype in VALUE_NAMES.items()}

_Parts: TypeAlias = Mapping[str, TensorInfo]


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter of a file.

    dtype: of its values once they are read. nnz: stored values, else all elements. values: how
    these are stored, one of VALUE_ENCODINGS. index: u8, u16, u32 or bitmap, empty unless sparse.
    num_exceptions: entries with an exact value (see Exceptions). parts: which tensors it has.
    nbytes: of its tensors in the file.
    """

    kind: Kind
    shape: Shape
    dtype: str
    nnz: int
    rank: int = 0
    scale: float = 1.0
    values: str = ""
    index: str = ""
    num_exceptions: int = 0
    parts: tuple[str, ...] = ()
    nbytes: int = 0

    @property
    def numel(self) -> int:
        """Elements of the parameter."""
        return math.prod(self.shape)


def parse_parameter(name: str, fields: Any, container: Container) -> ParameterSpec:
    """The parameter that the metadata declare as `fields`; raises a subclass of InvalidFile."""
    if not _NAME.fullmatch(name):
        raise InvalidHeader(f"invalid parameter name {name[:80]!r}")
    kind = fields.get("kind") if isinstance(fields, dict) else None
    if not isinstance(kind, str) or kind not in PARTS:
        raise InvalidHeader(
            f"unsupported kind {str(kind)[:80]!r} of {name}; choose {', '.join(PARTS)}"
        )
    tensors = {part: container.tensors.get(f"{name}.{part}") for part in PARTS[kind]}
    parts = {part: info for part, info in tensors.items() if info is not None}
    _check_fields(name, kind, fields, parts)
    shape = check_shape(fields["shape"], name)
    if kind == "sparse":
        spec = _sparse(name, shape, parts, fields.get("nnz"))
    elif kind == "low_rank":
        spec = _low_rank(name, shape, parts, fields["scale"])
    else:
        spec = _dense(name, shape, parts)
    return replace(
        spec,
        num_exceptions=_num_exceptions(name, parts, spec.numel),
        parts=tuple(parts),
        nbytes=sum(info.nbytes for info in parts.values()),
    )


def _check_fields(name: str, kind: str, fields: Mapping[str, Any], parts: _Parts) -> None:
    allowed = {"kind", "shape"}
    if kind == "low_rank":
        allowed.add("scale")
    if "sign" in parts:
        allowed.add("nnz")
    if fields.keys() != allowed:
        what = "ternary" if "sign" in parts else kind
        raise InvalidHeader(f"{what} {name} must have exactly {', '.join(sorted(allowed))}")


def _sparse(name: str, shape: Shape, parts: _Parts, nnz: Any) -> ParameterSpec:
    index = _one_of(name, "sparse", parts, "idx", "bits")
    values = _one_of(name, "sparse", parts, "val", "sign")
    numel = math.prod(shape)
    if values == "sign":
        count = _num_signs(name, parts["sign"], nnz)
    else:
        count = _length(f"{name}.val", parts["val"], VALUE_DTYPES | {"I8"})
    if count > numel:
        raise InvalidIndex(f"{name} has {count} values for {numel} elements")
    if index == "idx":
        _check_gaps(f"{name}.idx", parts["idx"], count, numel)
    else:
        _check_bitmap(f"{name}.bits", parts["bits"], numel)
    dtype, encoding = _value_encoding(name, shape, parts)
    how = "bitmap" if index == "bits" else parts["idx"].dtype.lower()
    return ParameterSpec("sparse", shape, dtype, count, values=encoding, index=how)


def _low_rank(name: str, shape: Shape, parts: _Parts, scale: Any) -> ParameterSpec:
    a, b = (_part(name, "low_rank", parts, part) for part in PARTS["low_rank"])
    if type(scale) not in (int, float) or not abs(scale) <= MAX_SCALE:
        raise InvalidHeader(
            f"the scale of {name} must be within ±{MAX_SCALE:g}, not {str(scale)[:40]}"
        )
    _check_dtype(f"{name}.lora_B", b, VALUE_DTYPES)
    if a.dtype != b.dtype:
        raise InvalidTensor(f"{name} has {a.dtype} lora_A and {b.dtype} lora_B")
    if not (len(shape) == len(a.shape) == len(b.shape) == 2):
        raise InvalidTensor(f"low_rank {name} and its tensors must have two dimensions")
    rank = a.shape[0]
    if a.shape != (rank, shape[1]) or b.shape != (shape[0], rank):
        raise InvalidTensor(
            f"lora_A {list(a.shape)} and lora_B {list(b.shape)} do not make {name} {list(shape)}"
        )
    if not 1 <= rank <= MAX_RANK:
        raise InvalidTensor(f"{name} has rank {rank}; it must be from 1 to {MAX_RANK}")
    numel, word = math.prod(shape), _WORDS[b.dtype]
    return ParameterSpec("low_rank", shape, b.dtype, numel, rank, float(scale), values=word)


def _dense(name: str, shape: Shape, parts: _Parts) -> ParameterSpec:
    delta = _part(name, "dense", parts, "delta")
    _check_dtype(f"{name}.delta", delta, VALUE_DTYPES)
    if delta.shape != shape:
        raise InvalidTensor(f"{name} is declared {list(shape)}, its delta {list(delta.shape)}")
    word = _WORDS[delta.dtype]
    return ParameterSpec("dense", shape, delta.dtype, math.prod(shape), values=word)


def _value_encoding(name: str, shape: Shape, parts: _Parts) -> tuple[str, str]:
    """The dtype of a sparse parameter's values in memory, and their encoding."""
    coded = "sign" in parts or parts["val"].dtype == "I8"
    if not coded:
        if "scale" in parts:
            raise InvalidTensor(f"{name} has a scale for {parts['val'].dtype} values")
        return parts["val"].dtype, _WORDS[parts["val"].dtype]
    scale = _part(name, "coded", parts, "scale")
    length = _length(f"{name}.scale", scale, {"F32"})
    rows = {shape[0]} if "val" in parts and len(shape) > 1 else set()
    if length not in rows | {1}:
        raise InvalidTensor(
            f"{name}.scale has {length} scales; choose {' or '.join(map(str, sorted(rows | {1})))}"
        )
    return "F32", "ternary" if "sign" in parts else "int8"


def _num_signs(name: str, sign: TensorInfo, nnz: Any) -> int:
    if type(nnz) is not int or nnz < 0:
        raise InvalidHeader(f"the nnz of {name} must be a count, not {str(nnz)[:40]}")
    if _length(f"{name}.sign", sign, {"U8"}) != num_bytes(nnz):
        raise InvalidTensor(
            f"{name}.sign has {sign.shape[0]} bytes; {nnz} signs need {num_bytes(nnz)}"
        )
    return nnz


def _num_exceptions(name: str, parts: _Parts, numel: int) -> int:
    if "exc" not in parts and "exc_idx" not in parts:
        return 0
    exact = _part(name, "exact", parts, "exc")
    index = _part(name, "exact", parts, "exc_idx")
    count = _length(f"{name}.exc", exact, EXACT_DTYPES)
    if count > numel:
        raise InvalidIndex(f"{name} has {count} exceptions for {numel} elements")
    _check_gaps(f"{name}.exc_idx", index, count, numel)
    return count


def _check_gaps(tensor: str, info: TensorInfo, count: int, numel: int) -> None:
    gaps = _length(tensor, info, INDEX_DTYPES)
    # An escape byte skips 255 elements, so there cannot be more than these.
    escapes = numel // ESCAPE if info.dtype == "U8" else 0
    if not count <= gaps <= (count + escapes if count else 0):
        raise InvalidIndex(f"{tensor} has {gaps} gaps for {count} values of {numel} elements")


def _check_bitmap(tensor: str, info: TensorInfo, numel: int) -> None:
    if _length(tensor, info, {"U8"}) != num_bytes(numel):
        raise InvalidTensor(
            f"{tensor} has {info.shape[0]} bytes; {numel} elements need {num_bytes(numel)}"
        )


def _length(tensor: str, info: TensorInfo, dtypes: Collection[str]) -> int:
    """The length of a 1-D tensor of one of these dtypes."""
    _check_dtype(tensor, info, dtypes)
    if len(info.shape) != 1:
        raise InvalidTensor(f"{tensor} has shape {list(info.shape)}; it must have one dimension")
    return info.shape[0]


def _check_dtype(tensor: str, info: TensorInfo, dtypes: Collection[str]) -> None:
    if info.dtype not in dtypes:
        raise InvalidTensor(f"{tensor} is {info.dtype}; choose {', '.join(sorted(dtypes))}")


def _part(name: str, what: str, parts: _Parts, part: str) -> TensorInfo:
    if part not in parts:
        raise InvalidTensor(f"{what} {name} lacks its tensor {name}.{part}")
    return parts[part]


def _one_of(name: str, what: str, parts: _Parts, usual: str, other: str) -> str:
    """Which of two parts there is."""
    if usual in parts and other in parts:
        raise InvalidTensor(f"{what} {name} has both {name}.{usual} and {name}.{other}")
    if usual not in parts and other not in parts:
        raise InvalidTensor(f"{what} {name} lacks its tensor {name}.{usual} (or {name}.{other})")
    return usual if usual in parts else other
