"""What a task vector file says about itself, checked without reading any tensor."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from taskvectors.container import Container, TensorInfo, check_shape
from taskvectors.container.dtypes import INDEX_DTYPES, VALUE_DTYPES
from taskvectors.container.strict_json import loads
from taskvectors.delta import Shape
from taskvectors.errors import (
    BaseMismatch,
    InvalidHeader,
    InvalidIndex,
    InvalidTensor,
    UnsupportedVersion,
)
from taskvectors.format.gaps import ESCAPE
from taskvectors.format.metadata import decode_metadata
from taskvectors.vector import BaseInfo

FORMAT = "task-vector"
VERSION = "1"
KIND = "additive"
REQUIRED = ("format", "version", "kind", "base", "parameters", "sha256")

MAX_RANK = 4096
MAX_BASE_NAME = 512
MAX_SCALE = 65536.0

Kind: TypeAlias = Literal["sparse", "low_rank", "dense"]
PARTS: Mapping[str, tuple[str, ...]] = {
    "sparse": ("idx", "val"),
    "low_rank": ("lora_A", "lora_B"),
    "dense": ("delta",),
}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,511}")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter of a file. dtype: of its values. nnz: stored values, else all elements."""

    kind: Kind
    shape: Shape
    dtype: str
    nnz: int
    rank: int = 0
    scale: float = 1.0

    @property
    def numel(self) -> int:
        """Elements of the parameter."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class FileHeader:
    """The header of a valid layout. nbytes: of the whole file. checksums: sha256 per tensor."""

    base: BaseInfo
    parameters: Mapping[str, ParameterSpec]
    metadata: Mapping[str, Any]
    nbytes: int
    tensors: Mapping[str, TensorInfo]
    checksums: Mapping[str, str]

    @property
    def head_nbytes(self) -> int:
        """Bytes of the header itself: where the first tensor begins."""
        return next((info.begin for info in self.tensors.values()), self.nbytes)


def parse_header(container: Container) -> FileHeader:
    """Check everything that the header alone can show; raises a subclass of InvalidFile."""
    strings = dict(container.metadata)
    _check_version(strings)
    required = {name: strings.pop(name, None) for name in REQUIRED}
    if missing := [name for name, text in required.items() if text is None]:
        raise InvalidHeader(f"the metadata lacks {', '.join(missing)}")
    base, declared, checksums = (
        _object(str(required[name]), name) for name in ("base", "parameters", "sha256")
    )
    parameters = {name: _parameter(name, declared[name], container) for name in sorted(declared)}
    _check_tensor_names(parameters, container)
    _check_checksums(checksums, container)
    return FileHeader(
        _base(base),
        parameters,
        decode_metadata(strings),
        container.nbytes,
        container.tensors,
        checksums,
    )


def check_against_base(
    header: FileHeader, shapes: Mapping[str, Shape] | None, fingerprint: str | None
) -> None:
    """Raise BaseMismatch unless the vector fits this base.

    shapes: of the base's parameters. A fingerprint that either side lacks is not compared.
    """
    known = header.base.fingerprint
    if fingerprint is not None and known is not None and fingerprint != known:
        raise BaseMismatch(
            f"the task vector belongs to the base {header.base}, not to the one with"
            f" fingerprint {fingerprint}"
        )
    if shapes is not None:
        for name, spec in header.parameters.items():
            match_shape(name, spec.shape, shapes.get(name))


def match_shape(name: str, shape: Shape, expected: Shape | None) -> None:
    """Raise BaseMismatch where the base has `name` in another shape, or not at all (None)."""
    if expected is None:
        raise BaseMismatch(f"the base has no parameter {name} (of shape {list(shape)})")
    if tuple(expected) != shape:
        raise BaseMismatch(
            f"{name} has shape {list(shape)} in the task vector and {list(expected)} in the base"
        )


def tensor_names(name: str, kind: str) -> tuple[str, ...]:
    """The tensors that hold a parameter, in the order of PARTS."""
    return tuple(f"{name}.{part}" for part in PARTS[kind])


def _check_version(strings: Mapping[str, str]) -> None:
    if strings.get("format") != FORMAT:
        raise InvalidHeader(
            f"not a task vector file: format is {str(strings.get('format'))[:80]!r}, not {FORMAT!r}"
        )
    for key, supported in (("version", VERSION), ("kind", KIND)):
        if key in strings and strings[key] != supported:
            raise UnsupportedVersion(
                f"unsupported {key} {strings[key][:80]!r}; choose {supported!r}"
            )


def _object(text: str, what: str) -> dict[str, Any]:
    value = loads(text.encode(), what)
    if not isinstance(value, dict):
        raise InvalidHeader(f"{what} must be a JSON object")
    return value


def _base(fields: Mapping[str, Any]) -> BaseInfo:
    name, fingerprint = fields.get("name"), fields.get("fingerprint")
    if fields.keys() != {"name", "fingerprint"} or not isinstance(name, str):
        raise InvalidHeader("base must have exactly a name and a fingerprint")
    if len(name) > MAX_BASE_NAME:
        raise InvalidHeader(
            f"the base name has {len(name)} characters; at most {MAX_BASE_NAME} are allowed"
        )
    if fingerprint is not None and not (
        isinstance(fingerprint, str) and _HEX.fullmatch(fingerprint)
    ):
        raise InvalidHeader("the base fingerprint must be 64 hex digits or null")
    return BaseInfo(name, fingerprint)


def _parameter(name: str, fields: Any, container: Container) -> ParameterSpec:
    if not _NAME.fullmatch(name):
        raise InvalidHeader(f"invalid parameter name {name[:80]!r}")
    kind = fields.get("kind") if isinstance(fields, dict) else None
    if not isinstance(kind, str) or kind not in PARTS:
        raise InvalidHeader(
            f"unsupported kind {str(kind)[:80]!r} of {name}; choose {', '.join(PARTS)}"
        )
    allowed = {"kind", "shape", "scale"} if kind == "low_rank" else {"kind", "shape"}
    if fields.keys() != allowed:
        raise InvalidHeader(f"{kind} {name} must have exactly {', '.join(sorted(allowed))}")
    names = tensor_names(name, kind)
    if missing := [tensor for tensor in names if tensor not in container.tensors]:
        raise InvalidTensor(f"{kind} {name} lacks its tensor {missing[0]}")
    tensors = [container.tensors[tensor] for tensor in names]
    shape = check_shape(fields["shape"], name)
    if tensors[-1].dtype not in VALUE_DTYPES:
        raise InvalidTensor(f"{names[-1]} is {tensors[-1].dtype}; choose F32, BF16 or F16")
    if kind == "sparse":
        return _sparse(name, shape, *tensors)
    if kind == "low_rank":
        return _low_rank(name, shape, *tensors, scale=fields["scale"])
    return _dense(name, shape, *tensors)


def _sparse(name: str, shape: Shape, idx: TensorInfo, val: TensorInfo) -> ParameterSpec:
    if idx.dtype not in INDEX_DTYPES or len(idx.shape) != 1 or len(val.shape) != 1:
        raise InvalidTensor(f"sparse {name} needs a 1-D U8, U16 or U32 idx and a 1-D val")
    (gaps,), (count,), numel = idx.shape, val.shape, math.prod(shape)
    if count > numel:
        raise InvalidIndex(f"{name} has {count} values for {numel} elements")
    # An escape byte skips 255 elements, so there cannot be more than these.
    escapes = numel // ESCAPE if idx.dtype == "U8" else 0
    if not count <= gaps <= (count + escapes if count else 0):
        raise InvalidIndex(f"{name} has {gaps} gaps for {count} values of {numel} elements")
    return ParameterSpec("sparse", shape, val.dtype, count)


def _low_rank(
    name: str, shape: Shape, a: TensorInfo, b: TensorInfo, *, scale: Any
) -> ParameterSpec:
    if type(scale) not in (int, float) or not abs(scale) <= MAX_SCALE:
        raise InvalidHeader(
            f"the scale of {name} must be within ±{MAX_SCALE:g}, not {str(scale)[:40]}"
        )
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
    return ParameterSpec("low_rank", shape, b.dtype, math.prod(shape), rank, float(scale))


def _dense(name: str, shape: Shape, delta: TensorInfo) -> ParameterSpec:
    if delta.shape != shape:
        raise InvalidTensor(f"{name} is declared {list(shape)}, its delta {list(delta.shape)}")
    return ParameterSpec("dense", shape, delta.dtype, math.prod(shape))


def _check_tensor_names(parameters: Mapping[str, ParameterSpec], container: Container) -> None:
    expected = {t for name, spec in parameters.items() for t in tensor_names(name, spec.kind)}
    if unknown := sorted(container.tensors.keys() - expected):
        raise InvalidTensor(f"tensor {unknown[0]} belongs to no declared parameter")


def _check_checksums(checksums: Mapping[str, Any], container: Container) -> None:
    if missing := sorted(container.tensors.keys() - checksums.keys()):
        raise InvalidHeader(f"sha256 lacks the tensor {missing[0]}")
    if unknown := sorted(checksums.keys() - container.tensors.keys()):
        raise InvalidHeader(f"sha256 names an unknown tensor {unknown[0][:80]!r}")
    for name, digest in checksums.items():
        if not isinstance(digest, str) or not _HEX.fullmatch(digest):
            raise InvalidHeader(f"the sha256 of {name} must be 64 hex digits")
