"""Reading task vector files. They are hostile until each check has passed."""

import hashlib
import os
from collections.abc import Iterable, Mapping

from taskvectors.container import (
    BufferSource,
    ByteSource,
    as_array,
    open_regular,
    read_bytes,
    read_container,
)
from taskvectors.delta import Array, Delta, DenseDelta, LowRankDelta, Shape, SparseDelta
from taskvectors.errors import ChecksumMismatch
from taskvectors.format.exceptions import Exceptions
from taskvectors.format.header import (
    FileHeader,
    check_against_base,
    parse_header,
)
from taskvectors.format.index import check_index, decode_index
from taskvectors.format.parameters import EXCEPTION_PARTS, ParameterSpec
from taskvectors.format.values import check_finite, check_values, decode_values
from taskvectors.vector import TaskVector

StrPath = str | os.PathLike[str]
_CHUNK = 1 << 20


def read_header(path: StrPath) -> FileHeader:
    """The header, checked with the layout; no tensor is read. Raises InvalidFile, OSError."""
    with open_regular(path) as file:
        return parse_header(read_container(file))


def read_vector(source: StrPath | memoryview, *, expected_digest: str | None = None) -> TaskVector:
    """The whole vector, fully validated, without exceptions. Raises InvalidFile, OSError.

    source: a file, or its bytes in memory, which the vector may go on using.

    With `expected_digest`, the header that the tensors' checksums come from is the very one that
    went into the digest, so a file that changes while it is read cannot slip through.
    """
    with VectorReader(source, expected_digest=expected_digest) as reader:
        parameters = {name: reader.delta(name) for name in reader.header.parameters}
        return TaskVector(reader.header.base, parameters, reader.header.metadata)


class VectorReader:
    """An open task vector file, one parameter in memory at a time. A context manager.

    source: a file, or its bytes in memory. Opening checks the header, and the digest if one is
    expected. Raises InvalidFile, OSError.
    """

    def __init__(self, source: StrPath | memoryview, *, expected_digest: str | None = None) -> None:
        self._file: ByteSource = (
            BufferSource(source) if isinstance(source, memoryview) else open_regular(source)
        )
        try:
            container = read_container(self._file)
            self.header = parse_header(container)
            if expected_digest is not None:
                _check_digest(self._file, container.head, expected_digest)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "VectorReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def delta(self, name: str) -> Delta:
        """The fully checked delta of one parameter; raises KeyError for no such name."""
        spec = self.header.parameters[name]
        parts = [part for part in spec.parts if part not in EXCEPTION_PARTS]
        return _build_delta(name, spec, self._read(name, parts))

    def exceptions(self, name: str) -> Exceptions | None:
        """The fully checked exceptions of one parameter; raises KeyError for no such name."""
        spec = self.header.parameters[name]
        if "exc" not in spec.parts:
            return None
        parts = self._read(name, EXCEPTION_PARTS)
        check_finite(f"{name}.exc", parts["exc"])
        raw, count = parts["exc_idx"], spec.num_exceptions
        return Exceptions(decode_index("exc_idx", raw, count, spec.numel, name), parts["exc"])

    def check(self, name: str) -> None:
        """Check all that `delta` and `exceptions` check, without room for what they return.

        Codes and bitmaps are small beside the deltas that they stand for; this takes only a small
        multiple of their bytes in the file. Raises KeyError for no such name.
        """
        spec = self.header.parameters[name]
        parts = self._read(name, spec.parts)
        if spec.kind == "sparse":
            part = _index_part(spec)
            check_values(name, parts, spec.nnz)
            check_index(part, parts[part], spec.nnz, spec.numel, name)
        else:
            check_finite(name, *(parts[part] for part in parts if part not in EXCEPTION_PARTS))
        if "exc" in parts:
            check_finite(f"{name}.exc", parts["exc"])
            check_index("exc_idx", parts["exc_idx"], spec.num_exceptions, spec.numel, name)

    def _read(self, name: str, parts: Iterable[str]) -> dict[str, Array]:
        return {part: _read_tensor(self._file, self.header, f"{name}.{part}") for part in parts}


def validate_file(
    path: StrPath,
    *,
    base_shapes: Mapping[str, Shape] | None = None,
    base_fingerprint: str | None = None,
) -> FileHeader:
    """Check all that read_vector checks and the exceptions, one parameter in memory at a time.

    Raises InvalidFile, OSError, and BaseMismatch where the base is given and another.
    """
    with VectorReader(path) as reader:
        check_against_base(reader.header, base_shapes, base_fingerprint)
        for name in reader.header.parameters:
            reader.check(name)
        return reader.header


def file_digest(path: StrPath) -> str:
    """sha256 of the file's bytes, in hex: the identity of a task vector file."""
    with open_regular(path) as file:
        return _digest_of_rest(file, b"")


def _check_digest(file: ByteSource, head: bytes, expected: str) -> None:
    file.seek(len(head))
    actual = _digest_of_rest(file, head)
    if actual != expected:
        raise ChecksumMismatch(f"the file has digest {actual}, not {expected}")


def _digest_of_rest(file: ByteSource, head: bytes) -> str:
    digest = hashlib.sha256(head)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _read_tensor(file: ByteSource, header: FileHeader, name: str) -> Array:
    info = header.tensors[name]
    data = read_bytes(file, name, info)
    actual = hashlib.sha256(data).hexdigest()
    if actual != header.checksums[name]:
        raise ChecksumMismatch(f"{name} has sha256 {actual}, not {header.checksums[name]}")
    return as_array(data, info)


def _build_delta(name: str, spec: ParameterSpec, parts: Mapping[str, Array]) -> Delta:
    if spec.kind == "sparse":
        check_values(name, parts, spec.nnz)
        part = _index_part(spec)
        index = decode_index(part, parts[part], spec.nnz, spec.numel, name)
        return SparseDelta(spec.shape, index, decode_values(parts, index, spec.shape))
    check_finite(name, *parts.values())
    if spec.kind == "low_rank":
        return LowRankDelta(spec.shape, parts["lora_A"], parts["lora_B"], spec.scale)
    return DenseDelta(parts["delta"])


def _index_part(spec: ParameterSpec) -> str:
    return "bits" if spec.index == "bitmap" else "idx"
