"""Changes to a task vector file that get past its checksums: they are made right again."""

import json
import random
import struct
from collections.abc import Callable
from typing import Any

from taskvectors.container.dtypes import DTYPES
from taskvectors.format.metadata import FIELDS
from taskvectors.format.parameters import PARTS
from tests.taskvectors.making import Forgery, join, split

MutateBytes = Callable[[bytes, int], bytes]
"""libFuzzer's own: changed bytes, at most so many."""

Change = Callable[[Forgery, random.Random, MutateBytes], None]

NUMBERS = (0, 1, 2, 3, 7, 8, 9, 63, 64, 255, 256, 300, 1 << 16, 1 << 31, 1 << 48, 1 << 63, -1)
SCALES = (0, 1, -0.5, 65536, 65537, 1e308, True, None, "1", [])
ALL_PARTS = sorted({part for parts in PARTS.values() for part in parts})
MOST_TENSOR = 2048
AS_IT_IS = 0.1
"""How often libFuzzer changes the whole file, checksums or not."""


def mutated(data: bytes, most: int, rng: random.Random, mutate: MutateBytes) -> bytes:
    """`data` with one to three changes, at most `most` bytes; mostly still a consistent file."""
    forgery = None if rng.random() < AS_IT_IS else taken_apart(data)
    if forgery is None:
        return mutate(data, most)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
        rng.choice(CHANGES)(forgery, rng, mutate)
    content = join(json.dumps(forgery.header()).encode(), forgery.data())
    return content if len(content) <= most else mutate(data, most)


def taken_apart(data: bytes) -> Forgery | None:
    """The tensors and metadata of a file; None where it is too broken for that."""
    try:
        head, rest = split(data)
        fields = json.loads(head)
        metadata = fields.pop("__metadata__")
        for key in ("base", "parameters", "sha256"):
            metadata[key] = json.loads(metadata[key])
        tensors = {
            name: (str(entry["dtype"]), list(entry["shape"]), rest[slice(*entry["data_offsets"])])
            for name, entry in fields.items()
        }
        forgery = Forgery(tensors, metadata)
        forgery.header()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error):
        return None
    return forgery if tensors and isinstance(metadata["parameters"], dict) else None


def change_bytes(forgery: Forgery, rng: random.Random, mutate: MutateBytes) -> None:
    """Other content of a tensor, of any length; its shape follows where it has one dimension."""
    name, (dtype, shape, data) = _tensor(forgery, rng)
    width = _width(dtype)
    data = mutate(data, MOST_TENSOR)
    data = data[: len(data) - len(data) % width]
    if len(shape) != 1:
        data = (data + bytes(MOST_TENSOR))[: len(forgery.tensors[name][2])]
    forgery.tensors[name] = (dtype, [len(data) // width] if len(shape) == 1 else shape, data)


def flip_bits(forgery: Forgery, rng: random.Random, mutate: MutateBytes) -> None:
    """Other content of a tensor, of the same length."""
    name, (dtype, shape, data) = _tensor(forgery, rng)
    content = bytearray(data)
    for _ in range(rng.randint(1, 4) if content else 0):
        position = rng.choice((rng.randrange(len(content)), len(content) - 1))
        content[position] = rng.choice((0, 255, 0x80, content[position] ^ 1 << rng.randrange(8)))
    forgery.tensors[name] = (dtype, shape, bytes(content))


def repeat_bytes(forgery: Forgery, rng: random.Random, mutate: MutateBytes) -> None:
    """A tensor that is longer, shorter or empty."""
    name, (dtype, _, data) = _tensor(forgery, rng)
    count = rng.randrange(5)
    step = _width(dtype)
    data = rng.choice((data * count, data[: count * step], data + data[:step], data[step:]))
    data = data[:MOST_TENSOR]
    forgery.tensors[name] = (dtype, [len(data) // step], data)


def change_dtype(forgery: Forgery, rng: random.Random, mutate: MutateBytes) -> None:
    """The same bytes as another dtype."""
    name, (_, shape, data) = _tensor(forgery, rng)
    dtype = rng.choice(sorted(DTYPES))
    count = len(data) // _width(dtype)
    shape = rng.choice((shape, [count], [1, count]))
    forgery.tensors[name] = (dtype, shape, data[: count * _width(dtype)])


def drop_tensor(forgery: Forgery, rng: random.Random, mutate: MutateBytes) -> None:
    """One tensor less."""
    name, _ = _tensor(forgery, rng)
    if len(forgery.tensors) > 1:
        del forgery.tensors[name]


def copy_tensor(forgery: Forgery, rng: random.Random, mutate: MutateBytes) -> None:
    """A tensor as another part of a parameter, or instead of the part it was."""
    name, tensor = _tensor(forgery, rng)
    stem = rng.choice([name.rpartition(".")[0], *map(str, forgery.metadata["parameters"])])
    if rng.random() < 0.5 and len(forgery.tensors) > 1:
        del forgery.tensors[name]
    forgery.tensors[f"{stem}.{rng.choice(ALL_PARTS)}"] = tensor


def change_parameter(forgery: Forgery, rng: random.Random, mutate: MutateBytes) -> None:
    """Another kind, shape, count or scale, or one field more or less."""
    parameters = [fields for fields in forgery.metadata["parameters"].values() if fields]
    fields = rng.choice(parameters or [{}])
    if not isinstance(fields, dict):
        return
    key = rng.choice(("kind", "shape", "shape", "nnz", "scale"))
    if key == "shape" and isinstance(shape := fields.get("shape"), list) and shape:
        shape[rng.randrange(len(shape))] = rng.choice(NUMBERS)
    elif rng.random() < 0.2:
        fields.pop(key, None)
    else:
        values: dict[str, Any] = {
            "kind": rng.choice(sorted(PARTS)),
            "shape": [rng.choice(NUMBERS) for _ in range(rng.randrange(4))],
            "nnz": rng.choice(NUMBERS),
            "scale": rng.choice(SCALES),
        }
        fields[key] = values[key]


def change_metadata(forgery: Forgery, rng: random.Random, mutate: MutateBytes) -> None:
    """Another text or JSON value of one field, of those that exist or might."""
    key = rng.choice(("base", "version", *FIELDS, *forgery.metadata))
    if key == "base" and isinstance(base := forgery.metadata["base"], dict):
        base[rng.choice(("name", "fingerprint", "x"))] = rng.choice((None, "b" * 513, "ab" * 32, 1))
    elif key not in ("base", "parameters", "sha256"):
        words = ("", "1", "[]", '["a"]', "[1]", "{}", '{"a": "\\ud800"}', '"a"', "y" * 1000)
        forgery.metadata[key] = rng.choice(words)


CHANGES: tuple[Change, ...] = (
    change_bytes,
    flip_bits,
    repeat_bytes,
    change_dtype,
    drop_tensor,
    copy_tensor,
    change_parameter,
    change_metadata,
)


def _tensor(forgery: Forgery, rng: random.Random) -> tuple[str, tuple[str, list[Any], bytes]]:
    name = rng.choice(sorted(forgery.tensors))
    return name, forgery.tensors[name]


def _width(dtype: str) -> int:
    return int(DTYPES[dtype].itemsize) if dtype in DTYPES else 1
