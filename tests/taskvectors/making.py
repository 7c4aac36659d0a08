"""Task vectors, forged files and tiny checkpoints for the tests."""

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from taskvectors.delta import Array, Delta
from taskvectors.vector import BaseInfo, DenseDelta, LowRankDelta, SparseDelta, TaskVector

BF16 = np.dtype(ml_dtypes.bfloat16)
FINGERPRINT = "ab" * 32
SPARSE, LOW_RANK, DENSE = "layers.0.up.weight", "layers.0.down.weight", "norm.weight"
SHAPES = {SPARSE: (6, 50), LOW_RANK: (4, 5), DENSE: (7,)}


def sparse(shape: Sequence[int], index: Sequence[int], values: Array | Sequence[float]) -> Delta:
    array = np.asarray(values, getattr(values, "dtype", np.float32))
    return SparseDelta(tuple(shape), np.asarray(index, np.int64), array)


def example_vector() -> TaskVector:
    """One parameter of each kind; exact in every value dtype."""
    a = (np.arange(10, dtype=np.float32).reshape(2, 5) - 4) / 8
    b = (np.arange(8, dtype=np.float32).reshape(4, 2) - 3) / 4
    return TaskVector(
        BaseInfo("example/base", FINGERPRINT),
        {
            SPARSE: sparse(SHAPES[SPARSE], [0, 3, 259, 299], np.array([1, -2, 0.5, 4], BF16)),
            LOW_RANK: LowRankDelta((4, 5), a, b, 2.0),
            DENSE: DenseDelta(np.linspace(-1.5, 1.5, 7).astype(np.float16)),
        },
        {"license": "apache-2.0", "tags": ["tést"], "extraction": {"density": 0.01}},
    )


def assert_same(left: TaskVector, right: TaskVector) -> None:
    """Equal in every bit, dtype and field."""
    assert left.base == right.base
    assert dict(left.metadata) == dict(right.metadata)
    assert list(left.parameters) == list(right.parameters)
    for name, delta in left.parameters.items():
        other = right.parameters[name]
        assert type(delta) is type(other)
        assert delta.shape == other.shape
        assert getattr(delta, "scale", None) == getattr(other, "scale", None)
        for part in ("index", "values", "a", "b"):
            mine, theirs = getattr(delta, part, None), getattr(other, part, None)
            assert (mine is None) == (theirs is None)
            if mine is not None:
                assert mine.dtype == theirs.dtype
                assert mine.shape == theirs.shape
                assert mine.tobytes() == theirs.tobytes()


@dataclass
class Forgery:
    """A task vector file taken apart, to be put together wrongly. Checksums are made right."""

    tensors: dict[str, tuple[str, list[Any], bytes]]
    metadata: dict[str, Any]

    @classmethod
    def of(cls, path: Path) -> "Forgery":
        head, data = split(path.read_bytes())
        fields = json.loads(head)
        metadata = fields.pop("__metadata__")
        for key in ("base", "parameters", "sha256"):
            metadata[key] = json.loads(metadata[key])
        tensors = {
            name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
            for name, entry in fields.items()
        }
        return cls(tensors, metadata)

    def replace(self, name: str, array: Array, dtype: str | None = None) -> None:
        """Other content of one tensor; of any dtype that the file format has a name for."""
        old = self.tensors[name][0]
        self.tensors[name] = (dtype or old, list(array.shape), array.tobytes())

    def header(self) -> dict[str, Any]:
        """The header with right offsets and checksums."""
        metadata = dict(self.metadata)
        metadata["sha256"] = {
            name: hashlib.sha256(data).hexdigest() for name, (_, _, data) in self.tensors.items()
        }
        fields: dict[str, Any] = {"__metadata__": encoded(metadata)}
        position = 0
        for name, (dtype, shape, data) in self.tensors.items():
            offsets = [position, position + len(data)]
            fields[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
            position += len(data)
        return fields

    def data(self) -> bytes:
        return b"".join(data for _, _, data in self.tensors.values())

    def write(self, path: Path) -> Path:
        path.write_bytes(join(json.dumps(self.header()).encode(), self.data()))
        return path


def encoded(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Nested JSON as strings, as in the file."""
    return {k: json.dumps(v) if isinstance(v, dict) else v for k, v in metadata.items()}


def split(content: bytes) -> tuple[bytes, bytes]:
    """Header and tensors of a file."""
    (length,) = struct.unpack("<Q", content[:8])
    return content[8 : 8 + length], content[8 + length :]


def join(header: bytes, data: bytes) -> bytes:
    """A file of this header and these tensors."""
    return struct.pack("<Q", len(header)) + header + data


def save_checkpoint(
    folder: Path, tensors: Mapping[str, Array], config: Mapping[str, object] | None = None
) -> Path:
    """A Hugging Face checkpoint folder with one shard."""
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    save_file(contiguous, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(dict(config or {})))
    return folder
