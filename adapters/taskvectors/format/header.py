"""What a task vector file says about itself, checked without reading any tensor."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskvectors.container import Container, TensorInfo
from taskvectors.container.strict_json import loads
from taskvectors.delta import Shape
from taskvectors.errors import (
    BaseMismatch,
    InvalidHeader,
    InvalidTensor,
    UnsupportedVersion,
)
from taskvectors.format.metadata import decode_metadata
from taskvectors.format.parameters import ParameterSpec, parse_parameter
from taskvectors.vector import BaseInfo

FORMAT = "task-vector"
VERSION = "1"
KIND = "additive"
REQUIRED = ("format", "version", "kind", "base", "parameters", "sha256")

MAX_BASE_NAME = 512
_HEX = re.compile(r"[0-9a-f]{64}")


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
    parameters = {
        name: parse_parameter(name, declared[name], container) for name in sorted(declared)
    }
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


def _check_tensor_names(parameters: Mapping[str, ParameterSpec], container: Container) -> None:
    expected = {f"{name}.{part}" for name, spec in parameters.items() for part in spec.parts}
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
