"""PEFT SHiRA folders as task vectors, and sparse merges as SHiRA folders (arXiv 2406.13175).

A layer has `shira_weight`, float [n], and `shira_indices`, int32 [2, n] of rows and columns, with
n = r · (in + out); `delta[row, column] = weight`. PEFT 0.21 stores no other scale, and no shape:
the base has it.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taskvectors.checkpoint import Checkpoint, fingerprint, read_json
from taskvectors.container.dtypes import VALUE_DTYPES
from taskvectors.delta import Array, Delta, Shape, SparseDelta
from taskvectors.errors import BaseMismatch, UnsupportedAdapter
from taskvectors.exchange.new_folder import creating
from taskvectors.exchange.peft_folder import (
    CONFIG,
    OTHERWISE,
    PREFIX,
    WEIGHTS,
    base_name,
    check_copy_of_base,
    check_linear,
    check_output,
    common_fields,
    find_base,
    is_embedding,
    write_folder,
)
from taskvectors.exchange.tensor_file import in_file_order
from taskvectors.format import VectorWriter
from taskvectors.format.metadata import card
from taskvectors.merge.stream import MergedVector, Progress
from taskvectors.vector import BaseInfo

_PART = re.compile(r"(?P<module>.+)\.(?P<part>shira_weight|shira_indices)")
_FULL_WEIGHT = re.compile(r"(?P<module>.+?)(?:\.base_layer)?\.weight")
_INDEX_DTYPES = ("I32", "I64", "F32")
"""PEFT on Windows saves indices as float32."""

_MAX_EXACT = 1 << 24
"""Above it float32 does not hold every integer."""


def import_shira(
    peft_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    base_dir: str | os.PathLike[str] | None = None,
    value_dtype: str | None = None,
) -> str:
    """Write the task vector of a PEFT SHiRA folder to `out`; return the file's digest.

    The base, given or named by the adapter, tells the shapes. Entries of value zero are left out.
    Raises UnsupportedAdapter, InvalidCheckpoint, BaseMismatch, InvalidFile, OSError.
    """
    folder = Path(peft_dir)
    fields = read_json(folder / CONFIG)
    rank = _parse_config(fields)
    base = find_base(fields, base_dir)
    if base is None:
        raise UnsupportedAdapter(
            f"{folder} does not say the shapes of its layers, and its base is not at hand; give"
            " the base's folder"
        )
    adapter = Checkpoint.open(folder, weights=WEIGHTS)
    check_output(Path(out), adapter, base)
    name = base_name(fields, base)
    info = BaseInfo(name, fingerprint(base))
    with VectorWriter(out, info, value_dtype=value_dtype) as writer:
        for module, parts in _pair_parts(adapter, base).items():
            parameter = f"{module}.weight"
            shape = base.shapes.get(parameter)
            if shape is None:
                raise BaseMismatch(f"the base {base.directory} has no parameter {parameter}")
            writer.add(parameter, _delta(module, parts, adapter, shape, rank))
        return writer.finish(
            card(
                base_model=name,
                base_model_relation="adapter",
                extraction={"method": "peft_shira"},
            )
        )


def export_shira(
    merged: MergedVector, out: str | os.PathLike[str], *, progress: Progress | None = None
) -> int:
    """Write a merge of sparse deltas as a PEFT SHiRA folder; return its `r`.

    PEFT wants r · (in + out) entries of every layer with one r for all, so layers are filled up
    with zeros. The merge runs twice: once to count, once to write.
    Raises UnsupportedAdapter, FileExistsError, OSError.
    """
    counts = {name: (delta.shape, delta.nnz) for name, delta in _sparse(merged, progress)}
    if not counts:
        raise UnsupportedAdapter("nothing is left of the merge: there is no adapter to write")
    rank = max(-(-nnz // sum(shape)) for shape, nnz in counts.values())
    layers = {check_linear(name): _Layer(name, shape, rank) for name, (shape, _) in counts.items()}
    table = {
        f"{PREFIX}{module}.{part}": entry
        for module, layer in layers.items()
        for part, entry in layer.table.items()
    }

    def blocks() -> Iterator[tuple[str, Array]]:
        for tensor in in_file_order(table):
            module, _, part = tensor.removeprefix(PREFIX).rpartition(".")
            layer = layers[module]
            yield tensor, layer.tensors(merged.delta(layer.name))[part]

    fields = common_fields(merged.base.name, layers) | {
        "peft_type": "SHIRA",
        "r": rank,
        "mask_type": "random",
        "random_seed": None,
        "init_weights": True,
    }
    with creating(out) as folder:
        write_folder(folder, fields, table, blocks())
    return rank


@dataclass(frozen=True)
class _Layer:
    """One layer of an adapter; name: of its parameter. Raises UnsupportedAdapter."""

    name: str
    shape: Shape
    rank: int

    def __post_init__(self) -> None:
        if self.count > math.prod(self.shape):
            raise UnsupportedAdapter(
                f"{self.name} {list(self.shape)} cannot hold the {self.count} entries that another"
                f" layer's r={self.rank} asks of it; {OTHERWISE}"
            )

    @property
    def count(self) -> int:
        return self.rank * sum(self.shape)

    @property
    def table(self) -> dict[str, tuple[Shape, str]]:
        return {
            "shira_weight": ((self.count,), "F32"),
            "shira_indices": ((2, self.count), "I32"),
        }

    def tensors(self, delta: Delta | None) -> dict[str, Array]:
        """Filled up with zeros at the first free places."""
        assert isinstance(delta, SparseDelta)
        free = np.setdiff1d(np.arange(self.count), delta.index)[: self.count - delta.nnz]
        index = np.concatenate([delta.index, free])
        values = np.concatenate([delta.values.astype(np.float32), np.zeros(len(free), np.float32)])
        order = np.argsort(index)
        places = np.stack(np.divmod(index[order], self.shape[1])).astype(np.int32)
        return {"shira_weight": values[order], "shira_indices": places}


def _sparse(merged: MergedVector, progress: Progress | None) -> Iterator[tuple[str, SparseDelta]]:
    for name, delta in merged.deltas(progress):
        module = check_linear(name)
        if not isinstance(delta, SparseDelta) or len(delta.shape) != 2 or is_embedding(module):
            raise UnsupportedAdapter(
                f"{name} is not a sparse delta of a linear layer, which is all that SHiRA holds;"
                f" {OTHERWISE}"
            )
        yield name, delta


def _parse_config(fields: Mapping[str, Any]) -> int:
    """The configured r."""
    if fields.get("peft_type") != "SHIRA":
        raise UnsupportedAdapter(f"unsupported adapter {fields.get('peft_type')!r}; choose SHIRA")
    for key, reason in (
        ("modules_to_save", "whole modules were trained; extract from the merged checkpoint"),
        ("fan_in_fan_out", "its layers store transposed weights"),
    ):
        if fields.get(key):
            raise UnsupportedAdapter(f"{key}={str(fields[key])[:80]}: {reason}")
    rank = fields.get("r")
    if type(rank) is not int or rank < 1:
        raise UnsupportedAdapter(f"{CONFIG} must give r, a whole number from 1; not {rank!r}")
    return rank


def _pair_parts(adapter: Checkpoint, base: Checkpoint) -> dict[str, dict[str, str]]:
    """Module to {"shira_weight": tensor name, "shira_indices": tensor name}."""
    modules: dict[str, dict[str, str]] = {}
    for name in adapter.names:
        inner = name.removeprefix(PREFIX)
        if match := _PART.fullmatch(inner):
            modules.setdefault(match["module"], {})[match["part"]] = name
        elif match := _FULL_WEIGHT.fullmatch(inner):
            check_copy_of_base(f"{match['module']}.weight", adapter.read(name), base)
        else:
            raise UnsupportedAdapter(f"tensor {name} is neither shira_weight nor shira_indices")
    if not modules:
        raise UnsupportedAdapter(f"{adapter.directory} holds no shira_weight")
    for module, parts in modules.items():
        if "shira_indices" not in parts:
            raise UnsupportedAdapter(
                f"{module} has no shira_indices: its mask was not saved, and cannot be drawn anew"
                " from the seed without the very torch that drew it; save it again from PEFT"
            )
        if "shira_weight" not in parts:
            raise UnsupportedAdapter(f"{module} has shira_indices but no shira_weight")
    return modules


def _delta(
    module: str, parts: Mapping[str, str], adapter: Checkpoint, shape: Shape, rank: int
) -> SparseDelta:
    _check_tensors(module, parts, adapter, shape, rank)
    values = np.array(adapter.read(parts["shira_weight"]))
    places = adapter.read(parts["shira_indices"]).astype(np.float64)
    limit = np.array(shape, np.float64)[:, None]
    if not bool(((places >= 0) & (places < limit) & (places == np.floor(places))).all()):
        raise UnsupportedAdapter(f"{module} has an index outside of {list(shape)}")
    rows, columns = places.astype(np.int64)
    index = rows * shape[1] + columns
    order = np.argsort(index, kind="stable")
    index, values = index[order], values[order]
    if bool((index[1:] == index[:-1]).any()):
        raise UnsupportedAdapter(f"{module} names an element twice in shira_indices")
    kept = values != 0
    return SparseDelta(shape, index[kept], values[kept])


def _check_tensors(
    module: str, parts: Mapping[str, str], adapter: Checkpoint, shape: Shape, rank: int
) -> None:
    """Shapes and dtypes, before anything is read."""
    values_shape, dtype = adapter.info(parts["shira_weight"])
    places_shape, index_dtype = adapter.info(parts["shira_indices"])
    if len(shape) != 2:
        raise UnsupportedAdapter(f"{module} is no linear layer: its weight is {list(shape)}")
    count = rank * sum(shape)
    if values_shape != (count,) or places_shape != (2, count):
        raise UnsupportedAdapter(
            f"{module} has shira_weight {list(values_shape)} and shira_indices"
            f" {list(places_shape)}; r={rank} and {list(shape)} ask for {count} entries"
        )
    if dtype not in VALUE_DTYPES or index_dtype not in _INDEX_DTYPES:
        raise UnsupportedAdapter(
            f"{module} has {dtype} values and {index_dtype} indices; choose"
            f" {', '.join(sorted(VALUE_DTYPES))} and {', '.join(_INDEX_DTYPES)}"
        )
    if index_dtype == "F32" and max(shape) > _MAX_EXACT:
        raise UnsupportedAdapter(f"{module} is too large for indices in float32")
