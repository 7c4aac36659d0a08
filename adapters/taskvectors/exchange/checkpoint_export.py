"""A base plus a merge as a dense Hugging Face checkpoint, one parameter in memory at a time."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np

from taskvectors.checkpoint import WEIGHTS, Checkpoint, fingerprint, fingerprint_line
from taskvectors.container.dtypes import EXACT_DTYPES, is_finite
from taskvectors.delta import Array, Delta, LowRankDelta, Shape, SparseDelta
from taskvectors.errors import BaseMismatch, ChecksumMismatch, InvalidCheckpoint, NonFiniteValue
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


class Restored(Protocol):
    """The fine-tuned checkpoint itself: `extract.restore.Restoration`."""

    fingerprint: str

    def dtype(self, name: str) -> str:
        """The safetensors dtype of a parameter."""
        ...

    def tensor(self, name: str) -> Array:
        """A parameter's own values."""
        ...


@dataclass(frozen=True)
class Written:
    """A checkpoint that was written. nbytes: of its weights. fingerprint: as of a base."""

    nbytes: int
    fingerprint: str


def export_checkpoint(
    change: Change,
    base: Checkpoint,
    out: str | os.PathLike[str],
    *,
    max_shard_size: int | None = None,
    base_fingerprint: str | None = None,
    restored: Restored | None = None,
    progress: Progress | None = None,
) -> Written:
    """Write base + change to the folder `out`.

    Added in float32 (float64 for a float64 base) and rounded to the base's own dtype; elements
    that a sparse delta does not name keep their bits. Configuration, tokenizer and licence are
    copied. max_shard_size: bytes of a file; None divides the weights as the base does.
    base_fingerprint: if it is known already. restored: written instead of base + change, which is
    the same but for rounding, and held against its own fingerprint.
    Raises BaseMismatch, InvalidCheckpoint, NonFiniteValue, ChecksumMismatch,
    FileExistsError, OSError.
    """
    _check_base(change, base, base_fingerprint)
    values = _Values(change, base, restored, progress)
    table = {name: values.entry(name) for name in base.names}
    shards = _shards(base, table, max_shard_size)
    with creating(out) as folder:
        for file, part in shards.items():
            write_tensors(folder / file, part, values.blocks(part))
        written = Written(sum(nbytes(*entry) for entry in table.values()), values.fingerprint())
        _check_restored(written, restored)
        _write_index(folder, shards)
        _copy_rest(base.directory, folder)
    return written


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
    """The new values of every parameter, in blocks. checksums: of what was written, by name."""

    change: Change
    base: Checkpoint
    restored: Restored | None
    progress: Progress | None
    checksums: dict[str, str] = field(default_factory=dict)

    def entry(self, name: str) -> tuple[Shape, str]:
        shape, dtype = self.base.info(name)
        return shape, dtype if self.restored is None else self.restored.dtype(name)

    def blocks(self, table: Table) -> Iterator[tuple[str, Array]]:
        """Those of one file."""
        for name in in_file_order(table):
            checksum = hashlib.sha256()
            for block in self._parameter(name):
                checksum.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
                yield name, block
            self.checksums[name] = checksum.hexdigest()
            if self.progress is not None:
                self.progress(len(self.checksums), len(self.base.names), name)

    def _parameter(self, name: str) -> Iterator[Array]:
        if self.restored is not None:
            yield self.restored.tensor(name)
            return
        delta = self.change.delta(name) if name in self.change.shapes else None
        if delta is not None:
            yield added(name, self.base.read(name), delta)
            return
        numel = math.prod(self.base.info(name)[0])
        for begin in range(0, numel, _BLOCK):
            yield self.base.read_block(name, begin, min(begin + _BLOCK, numel))

    def fingerprint(self) -> str:
        """Of the whole checkpoint, once all of it was written."""
        total = hashlib.sha256()
        for name in sorted(self.checksums):
            total.update(fingerprint_line(name, *self.entry(name), self.checksums[name]))
        return total.hexdigest()


def _check_restored(written: Written, restored: Restored | None) -> None:
    if restored is not None and written.fingerprint != restored.fingerprint:
        raise ChecksumMismatch(
            f"the checkpoint came back with fingerprint {written.fingerprint}, not"
            f" {restored.fingerprint}: the lossless task vector is broken"
        )


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


def _shards(base: Checkpoint, table: Table, limit: int | None) -> dict[str, Table]:
    """File name to what is in it."""
    if limit is None:
        groups: dict[Path, dict[str, tuple[Shape, str]]] = {}
        for name, (path, _) in base.tensors.items():
            groups.setdefault(path, {})[name] = table[name]
        tables = [groups[path] for path in sorted(groups)]
    else:
        tables = _divided(table, limit)
    if len(tables) == 1:
        return {WEIGHTS: tables[0]}
    stem = WEIGHTS.removesuffix(".safetensors")
    count = len(tables)
    return {
        f"{stem}-{number:05d}-of-{count:05d}.safetensors": part
        for number, part in enumerate(tables, start=1)
    }


def _divided(table: Table, limit: int) -> list[dict[str, tuple[Shape, str]]]:
    """In the order of names; a parameter larger than the limit has a file of its own."""
    tables: list[dict[str, tuple[Shape, str]]] = [{}]
    room = limit
    for name, entry in table.items():
        size = nbytes(*entry)
        if size > room and tables[-1]:
            tables.append({})
            room = limit
        tables[-1][name] = entry
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
