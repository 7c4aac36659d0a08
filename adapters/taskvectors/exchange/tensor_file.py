"""Writing safetensors files of known shapes, a block at a time."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np

from taskvectors.container import LENGTH
from taskvectors.container.dtypes import DTYPES, NAMES
from taskvectors.container.strict_json import dumps
from taskvectors.delta import Array, Shape
from taskvectors.durable import replacing

Table: TypeAlias = Mapping[str, tuple[Shape, str]]
"""Name to shape and safetensors dtype."""

_METADATA = {"format": "pt"}
"""What transformers and PEFT write and look for."""

_ALIGNMENT = 8


def nbytes(shape: Shape, dtype: str) -> int:
    """Bytes of one tensor."""
    return math.prod(shape) * int(DTYPES[dtype].itemsize)


def write_tensors(path: Path, table: Table, blocks: Iterable[tuple[str, Array]]) -> None:
    """Write the tensors of `table`. blocks: as `in_file_order` says, a tensor's in sequence.

    The layout is the safetensors library's own: wide dtypes first, then by name.
    """
    names = in_file_order(table)
    with replacing(path) as file:
        file.write(_head(names, table))
        written = dict.fromkeys(names, 0)
        for name, block in blocks:
            assert NAMES[block.dtype] == table[name][1], f"{name} changed its dtype"
            data = np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
            file.write(data)
            written[name] += len(data)
        assert list(written.values()) == [nbytes(*table[name]) for name in names]


def in_file_order(table: Table) -> list[str]:
    """The names in the order in which their bytes lie in the file."""
    return sorted(table, key=lambda name: (-DTYPES[table[name][1]].itemsize, name))


def _head(names: list[str], table: Table) -> bytes:
    fields: dict[str, object] = {"__metadata__": _METADATA}
    position = 0
    for name in names:
        shape, dtype = table[name]
        end = position + nbytes(shape, dtype)
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = dumps(fields).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return LENGTH.pack(len(text)) + text
