"""Writing task vector files: deterministic bytes, and never a half-written file under its name.

The order of tensors and keys is fixed (docs/format.md), so equal vectors are equal files.
"""

import hashlib
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from taskvectors.container import LENGTH, MAX_HEADER, parse_container
from taskvectors.container.dtypes import DTYPES, NAMES
from taskvectors.container.strict_json import dumps
from taskvectors.delta import Array, Delta, DenseDelta, LowRankDelta, Shape, SparseDelta
from taskvectors.durable import replacing
from taskvectors.errors import HeaderTooLarge, InvalidIndex, InvalidTensor
from taskvectors.format.exceptions import Exceptions
from taskvectors.format.gaps import encode_gaps
from taskvectors.format.header import FORMAT, KIND, VERSION, parse_header
from taskvectors.format.index import encode_index
from taskvectors.format.metadata import encode_metadata
from taskvectors.format.values import cast_values, encode_sparse, float_encoding
from taskvectors.vector import BaseInfo, TaskVector

_ALIGNMENT = 8
_COPY_CHUNK = 1 << 20


def write_vector(
    vector: TaskVector,
    path: str | os.PathLike[str],
    *,
    value_dtype: str | None = None,
    index: str = "auto",
) -> str:
    """Write `vector` and return the file's digest.

    value_dtype: one of VALUE_ENCODINGS, or None to keep each delta's own; int8 and ternary are for
    sparse deltas, the others are then bf16. index: one of INDEX_ENCODINGS.
    Raises InvalidFile for what the format cannot hold (and NonFiniteValue for an overflow).
    """
    with VectorWriter(path, vector.base, value_dtype=value_dtype, index=index) as writer:
        for name, delta in vector.parameters.items():
            writer.add(name, delta)
        return writer.finish(vector.metadata)


@dataclass(frozen=True)
class _Stored:
    """A tensor in the spool file."""

    dtype: str
    shape: Shape
    offset: int
    nbytes: int
    sha256: str


class VectorWriter:
    """Takes deltas one by one, keeping only their encoded bytes, in an unnamed file beside `path`.

    Use as a context manager: `add` for each parameter in any order, then `finish` once. Without
    `finish` nothing appears under `path`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        base: BaseInfo,
        *,
        value_dtype: str | None = None,
        index: str = "auto",
    ) -> None:
        self.path = Path(path)
        self._base = base
        self._value_dtype = value_dtype
        self._index = index
        self._tensors: dict[str, _Stored] = {}
        self._parameters: dict[str, dict[str, Any]] = {}
        self._spool: IO[bytes] = tempfile.TemporaryFile(dir=self.path.parent)  # noqa: SIM115

    def __enter__(self) -> "VectorWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._spool.close()

    def add(self, name: str, delta: Delta, exceptions: Exceptions | None = None) -> None:
        """Encode one parameter; raises InvalidIndex, InvalidTensor, NonFiniteValue.

        exceptions: the entries that base + delta as it is stored does not restore.
        """
        assert name not in self._parameters, f"{name} was added twice"
        fields, parts = self._encode(name, delta)
        if exceptions is not None and len(exceptions):
            parts |= _encode_exceptions(name, delta, exceptions)
        self._parameters[name] = {**fields, "shape": list(delta.shape)}
        for part, array in parts.items():
            self._store(f"{name}.{part}", array)

    def finish(self, fields: Mapping[str, Any]) -> str:
        """Write the file with these metadata fields under its name; return its digest.

        Raises HeaderTooLarge, InvalidHeader or InvalidTensor for what a reader would refuse.
        """
        order = sorted(self._tensors, key=lambda name: (-self._width(name), name))
        head = self._head(order, fields)
        total = len(head) + sum(stored.nbytes for stored in self._tensors.values())
        parse_header(parse_container(head, total))
        digest = hashlib.sha256(head)
        with replacing(self.path) as file:
            file.write(head)
            for name in order:
                for chunk in self._chunks(self._tensors[name]):
                    digest.update(chunk)
                    file.write(chunk)
        return digest.hexdigest()

    def _encode(self, name: str, delta: Delta) -> tuple[dict[str, Any], dict[str, Array]]:
        """What the metadata say of a parameter, and its parts."""
        if isinstance(delta, SparseDelta):
            return self._encode_sparse(name, delta)
        encoding = float_encoding(self._value_dtype)
        if isinstance(delta, LowRankDelta):
            a, b = (cast_values(part, encoding, name) for part in (delta.a, delta.b))
            fields = {"kind": "low_rank", "scale": float(delta.scale)}
            return fields, {"lora_A": a, "lora_B": b}
        assert isinstance(delta, DenseDelta)
        return {"kind": "dense"}, {"delta": cast_values(delta.values, encoding, name)}

    def _encode_sparse(
        self, name: str, delta: SparseDelta
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        index, values = encode_sparse(name, delta, self._value_dtype)
        part, raw = encode_index(index, math.prod(delta.shape), self._index)
        # Signs come in whole bytes, so only these need to be counted.
        counted = {"nnz": len(index)} if "sign" in values else {}
        return {"kind": "sparse", **counted}, {part: raw, **values}

    def _store(self, name: str, array: Array) -> None:
        dtype = array.dtype.newbyteorder("<")
        data = np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data
        shape = tuple(int(size) for size in array.shape)
        sha256 = hashlib.sha256(data).hexdigest()
        self._tensors[name] = _Stored(NAMES[dtype], shape, self._spool.tell(), data.nbytes, sha256)
        self._spool.write(data)

    def _width(self, name: str) -> int:
        return int(DTYPES[self._tensors[name].dtype].itemsize)

    def _head(self, order: list[str], fields: Mapping[str, Any]) -> bytes:
        base = {"name": self._base.name, "fingerprint": self._base.fingerprint}
        checksums = {name: stored.sha256 for name, stored in self._tensors.items()}
        strings = encode_metadata(fields) | {
            "format": FORMAT,
            "version": VERSION,
            "kind": KIND,
            "base": dumps(base),
            "parameters": dumps(self._parameters),
            "sha256": dumps(checksums),
        }
        text = dumps({"__metadata__": strings, **self._table(order)}).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        if len(text) > MAX_HEADER:
            raise HeaderTooLarge(f"the header has {len(text)} bytes; at most {MAX_HEADER} fit")
        return LENGTH.pack(len(text)) + text

    def _table(self, order: list[str]) -> dict[str, Any]:
        """The header's entry for each tensor, one after the other without holes."""
        ends = accumulate(self._tensors[name].nbytes for name in order)
        return {
            name: {
                "dtype": stored.dtype,
                "shape": list(stored.shape),
                "data_offsets": [end - stored.nbytes, end],
            }
            for name, end in zip(order, ends, strict=True)
            for stored in [self._tensors[name]]
        }

    def _chunks(self, stored: _Stored) -> Iterator[bytes]:
        self._spool.seek(stored.offset)
        left = stored.nbytes
        while left:
            chunk = self._spool.read(min(left, _COPY_CHUNK))
            left -= len(chunk)
            yield chunk


def _encode_exceptions(name: str, delta: Delta, exceptions: Exceptions) -> dict[str, Array]:
    if isinstance(delta, LowRankDelta):
        raise InvalidTensor(f"low_rank {name} cannot have exceptions; store it sparse or dense")
    numel = math.prod(delta.shape)
    if (last := int(exceptions.index[-1])) >= numel:
        raise InvalidIndex(f"{name} has an exception at {last}, outside of {numel} elements")
    return {"exc_idx": encode_gaps(exceptions.index), "exc": exceptions.values}
