"""The outer layer of any safetensors file: 8 bytes of length, a JSON header, the tensors' bytes.

Layout is checked against the file's size before anything of the declared size is allocated.
Byte-level description: docs/format.md.
"""

import math
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from taskvectors.container.dtypes import DTYPES
from taskvectors.container.strict_json import loads
from taskvectors.delta import Array, Shape
from taskvectors.errors import (
    HeaderTooLarge,
    InvalidFile,
    InvalidHeader,
    InvalidTensor,
    TruncatedFile,
)

MAX_HEADER = 8 << 20
"""Largest header of a task vector file, in bytes."""

MAX_NAME = 1024
MAX_DIMS = 8
MAX_NUMEL = 1 << 48
LENGTH = struct.Struct("<Q")


Bytes = bytes | memoryview


class ByteSource(Protocol):
    """What a container is read from: an open file, or a buffer in memory."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """As a file does."""
        ...

    def read(self, size: int = -1, /) -> Bytes:
        """As a file does; a buffer need not copy."""
        ...

    def close(self) -> None:
        """As a file does."""
        ...


class BufferSource:
    """Reads a buffer without a copy; what it gives out is a view."""

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer.toreadonly().cast("B")
        self._at = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Only from the start, or to the end."""
        assert offset >= 0
        assert whence == os.SEEK_SET or (whence == os.SEEK_END and offset == 0)
        self._at = offset if whence == os.SEEK_SET else self._buffer.nbytes
        return self._at

    def read(self, size: int = -1, /) -> memoryview:
        """A view of the next bytes; all of them by default."""
        end = self._buffer.nbytes if size < 0 else self._at + size
        data = self._buffer[self._at : end]
        self._at += data.nbytes
        return data

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: `begin` and `end` are offsets from the start of the file."""

    dtype: str
    shape: Shape
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.end - self.begin


@dataclass(frozen=True)
class Container:
    """A parsed header. tensors: in file order. head: the first `8 + N` bytes as they are."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    nbytes: int
    head: bytes


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open for reading; raises InvalidFile for a folder, pipe or device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidFile(f"{Path(path).name} is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_container(file: ByteSource, max_header: int = MAX_HEADER) -> Container:
    """Read and check the header of an open file; raises a subclass of InvalidFile."""
    nbytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = bytes(file.read(LENGTH.size))
    if len(length) < LENGTH.size:
        raise TruncatedFile(f"the file has {nbytes} bytes; a header needs at least 10")
    (size,) = LENGTH.unpack(length)
    check_header_size(size, nbytes, max_header)
    head = length + file.read(size)
    if len(head) != LENGTH.size + size:
        raise TruncatedFile(f"the header ends after {len(head)} of {LENGTH.size + size} bytes")
    return parse_container(head, nbytes)


def check_header_size(size: int, nbytes: int, max_header: int = MAX_HEADER) -> None:
    """Raise HeaderTooLarge, TruncatedFile where a header cannot be `size` bytes long."""
    if size > max_header:
        raise HeaderTooLarge(f"the header claims {size} bytes; at most {max_header} are allowed")
    if size > nbytes - LENGTH.size:
        raise TruncatedFile(f"the header claims {size} bytes; the file has {nbytes}")


def parse_container(head: bytes, nbytes: int) -> Container:
    """Check a header of `8 + N` bytes against the file's size; raises a subclass of InvalidFile."""
    fields = loads(head[LENGTH.size :], "the header")
    if not isinstance(fields, dict) or head[LENGTH.size : LENGTH.size + 1] != b"{":
        raise InvalidHeader("the header is not a JSON object")
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InvalidHeader("__metadata__ must be an object of strings")
    for name in fields:
        if not (0 < len(name) <= MAX_NAME and name.isprintable()):
            raise InvalidHeader(f"a tensor is called {name[:80]!r}; choose printable names")
    tensors = {name: _tensor_info(name, entry, len(head)) for name, entry in fields.items()}
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))
    _check_contiguous(ordered, len(head), nbytes)
    return Container(ordered, metadata, nbytes, head)


def read_bytes(file: ByteSource, name: str, info: TensorInfo) -> Bytes:
    """The bytes of one tensor; raises TruncatedFile when the file shrank meanwhile."""
    file.seek(info.begin)
    data = file.read(info.nbytes)
    if len(data) != info.nbytes:
        raise TruncatedFile(f"{name} ends after {len(data)} of {info.nbytes} bytes")
    return data


def as_array(data: Bytes, info: TensorInfo) -> Array:
    """A read-only array over `data`."""
    return np.frombuffer(data, DTYPES[info.dtype]).reshape(info.shape)


def _tensor_info(name: str, entry: Any, start: int) -> TensorInfo:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise InvalidHeader(f"{name} must have exactly dtype, shape and data_offsets")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InvalidTensor(
            f"{name} has unsupported dtype {str(dtype)[:40]!r}; choose {', '.join(DTYPES)}"
        )
    shape = check_shape(entry["shape"], name)
    offsets = entry["data_offsets"]
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(map(_is_count, offsets))):
        raise InvalidTensor(f"data_offsets of {name} must be two non-negative integers")
    begin, end = offsets
    if end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise InvalidTensor(f"{name} is {dtype} {list(shape)} but has {end - begin} bytes")
    return TensorInfo(dtype, shape, start + begin, start + end)


def check_shape(value: Any, name: str) -> Shape:
    """A shape from JSON as a tuple, with bounded dimensions and product; raises InvalidTensor."""
    if not (isinstance(value, list) and len(value) <= MAX_DIMS and all(map(_is_count, value))):
        raise InvalidTensor(
            f"the shape of {name} must be at most {MAX_DIMS} integers from 0 to {MAX_NUMEL}"
        )
    if math.prod(value) > MAX_NUMEL:  # Python integers do not wrap
        raise InvalidTensor(f"{name} of shape {value} has more than {MAX_NUMEL} elements")
    return tuple(value)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_NUMEL


def _check_contiguous(tensors: Mapping[str, TensorInfo], start: int, nbytes: int) -> None:
    position = start
    for name, info in tensors.items():
        if info.begin != position:
            kind = "a hole before" if info.begin > position else "an overlap at"
            raise InvalidTensor(f"{kind} {name}: it begins at {info.begin}, not at {position}")
        position = info.end
    if position != nbytes:
        raise TruncatedFile(f"the tensors end at byte {position}, the file at {nbytes}")
