"""A base plus a merge as a dense Hugging Face checkpoint, one parameter in memory at a time."""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np

from taskvectors.checkpoint import WEIGHTS, Checkpoint, fingerprint
from taskvectors.container.dtypes import EXACT_DTYPES, is_finite
from taskvectors.delta import Array, Delta, LowRankDelta, Shape, SparseDelta
from taskvectors.errors import BaseMismatch, InvalidCheckpoint, NonFiniteValue
from taskvectors.exchange.new_folder import creating
from taskvectors.exchange.tensor_file import Table, in_file_order, nbytes, write_tensors
from taskvectors.format.header import match_shape
from taskvectors.merge.parts import elements
from taskvectors.vector import BaseInfo

_BLOCK = 1 << 20
_COPIED = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py")
_COPIED_NAMES = ("LICENSE", "NOTICE")

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with (parameters done, parameters in all, name of the one just done)."""


class Change(Protocol):
    """What is added to a base: a merge, computed as it is read."""

    @property
    def base(self) -> BaseInfo:
        """The base that it belongs to."""
        ...

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """The parameters that it may change."""
        ...

    def delta(self, name: str) -> Delta | None:
        """The delta of one of `shapes`; None where nothing changes."""
        ...


def export_checkpoint(
    change: Change,
    base: Checkpoint,
    out: str | os.PathLike[str],
    *,
    max_shard_size: int | None = None,
    base_fingerprint: str | None = None,
    restored: Mapping[str, Callable[[], Array]] | None = None,
    progress: Progress | None = None,
) -> int:
    """Write base + change to the folder `out`; return the bytes of its weights.

    Added in float32 (float64 for a float64 base) and rounded to the base's own dtype; elements
    that a sparse delta does not name keep their bits. Configuration, tokenizer and licence are
    copied. max_shard_size: bytes of a file; None divides the weights as the base does.
    base_fingerprint: if it is known already. restored: parameters to write as they are, instead.
    Raises BaseMismatch, InvalidCheckpoint, NonFiniteValue, FileExistsError, OSError.
    """
    _check_base(change, base, base_fingerprint)
    values = _Values(change, base, restored or {}, progress)
    shards = _shards(base, max_shard_size)
    with creating(out) as folder:
        done = 0
        for file, table in shards.items():
            write_tensors(folder / file, table, values.blocks(table, done))
            done += len(table)
        _write_index(folder, shards)
        _copy_rest(base.directory, folder)
    return sum(nbytes(*base.info(name)) for name in base.names)


def added(name: str, tensor: Array, delta: Delta) -> Array:
    """`tensor + delta` in the tensor's own dtype and shape; raises NonFiniteValue.

    The same bits on any machine.
    """
    wide = np.promote_types(np.float32, tensor.dtype)
    flat = np.array(tensor).reshape(-1)
    with np.errstate(over="ignore"):
        if isinstance(delta, SparseDelta):
            changed = (flat[delta.index].astype(wide) + delta.values.astype(wide)).astype(
                flat.dtype
            )
            flat[delta.index] = changed
        else:
            changed = flat
            whole = elements(delta) if isinstance(delta, LowRankDelta) else delta.values.reshape(-1)
            for start in range(0, len(flat), _BLOCK):
                block = slice(start, start + _BLOCK)
                flat[block] = flat[block].astype(wide) + whole[block].astype(wide)
    if not is_finite(changed):
        raise NonFiniteValue(
            f"{name} plus its delta does not fit {flat.dtype.name}; lower the weights, or use a"
            " base of a wider dtype"
        )
    return flat.reshape(tensor.shape)


@dataclass(frozen=True, eq=False)
class _Values:
    """The new values of every parameter, in blocks."""

    change: Change
    base: Checkpoint
    restored: Mapping[str, Callable[[], Array]]
    progress: Progress | None

    def blocks(self, table: Table, done: int) -> Iterator[tuple[str, Array]]:
        """Those of one file. done: parameters in the files before."""
        for name in in_file_order(table):
            for block in self._parameter(name):
                yield name, block
            done += 1
            if self.progress is not None:
                self.progress(done, len(self.base.names), name)

    def _parameter(self, name: str) -> Iterator[Array]:
        if name in self.restored:
            yield self.restored[name]()
            return
        delta = self.change.delta(name) if name in self.change.shapes else None
        if delta is not None:
            yield added(name, self.base.read(name), delta)
            return
        numel = math.prod(self.base.info(name)[0])
        for begin in range(0, numel, _BLOCK):
            yield self.base.read_block(name, begin, min(begin + _BLOCK, numel))


def _check_base(change: Change, base: Checkpoint, known: str | None) -> None:
    for name, shape in change.shapes.items():
        match_shape(name, shape, base.shapes.get(name))
        if (dtype := base.info(name)[1]) not in EXACT_DTYPES:
            raise InvalidCheckpoint(
                f"{name} is {dtype} in {base.directory}: a delta needs a base of"
                f" {', '.join(sorted(EXACT_DTYPES))}; dequantize it first"
            )
    wanted = change.base.fingerprint
    if wanted is not None and (actual := known or fingerprint(base)) != wanted:
        raise BaseMismatch(
            f"the task vectors belong to {change.base}; {base.directory} has fingerprint {actual}"
        )


def _shards(base: Checkpoint, limit: int | None) -> dict[str, Table]:
    """File name to what is in it."""
    groups: dict[object, dict[str, tuple[Shape, str]]] = {}
    if limit is None:
        for name, (path, _) in base.tensors.items():
            groups.setdefault(path, {})[name] = base.info(name)
        tables = [groups[path] for path in sorted(groups, key=str)]
    else:
        tables = _divided(base, limit)
    if len(tables) == 1:
        return {WEIGHTS: tables[0]}
    stem = WEIGHTS.removesuffix(".safetensors")
    count = len(tables)
    return {
        f"{stem}-{number:05d}-of-{count:05d}.safetensors": table
        for number, table in enumerate(tables, start=1)
    }


def _divided(base: Checkpoint, limit: int) -> list[dict[str, tuple[Shape, str]]]:
    """In the order of names; a parameter larger than the limit has a file of its own."""
    tables: list[dict[str, tuple[Shape, str]]] = [{}]
    room = limit
    for name in base.names:
        size = nbytes(*base.info(name))
        if size > room and tables[-1]:
            tables.append({})
            room = limit
        tables[-1][name] = base.info(name)
        room -= size
    return tables


def _write_index(folder: Path, shards: Mapping[str, Table]) -> None:
    if len(shards) == 1:
        return
    weight_map = {name: file for file, table in shards.items() for name in table}
    total = sum(nbytes(*entry) for table in shards.values() for entry in table.values())
    fields = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(fields, indent=2) + "\n")


def _copy_rest(source: Path, target: Path) -> None:
    """What a loader needs beside the weights: configuration, tokenizer, template, code, licence."""
    for path in sorted(source.iterdir()):
        is_index = path.name.endswith(".index.json")
        is_wanted = path.suffix in _COPIED or path.name.split(".")[0] in _COPIED_NAMES
        if path.is_file() and is_wanted and not is_index and not path.name.startswith("."):
            shutil.copyfile(path, target / path.name)
