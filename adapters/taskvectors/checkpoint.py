"""Reading a Hugging Face checkpoint without torch: names, shapes, one tensor at a time."""

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from taskvectors.container import TensorInfo, open_regular, read_container
from taskvectors.container.dtypes import DTYPES
from taskvectors.container.strict_json import dumps, loads
from taskvectors.delta import Array, Shape
from taskvectors.durable import replacing
from taskvectors.errors import InvalidCheckpoint, InvalidFile, InvalidHeader

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
_HEAD = "lm_head.weight"
_MAX_HEADER = 100_000_000  # the limit of the safetensors library
_THREADS = 4
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Checkpoint:
    """The parameters of a folder with safetensors weights.

    With `tie_word_embeddings` in config.json a stored `lm_head.weight` is not a parameter.
    """

    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, tuple[Path, TensorInfo]]

    @classmethod
    def open(cls, directory: str | os.PathLike[str], *, weights: str = WEIGHTS) -> "Checkpoint":
        """Read the headers of `weights` or of its shards; raises InvalidCheckpoint."""
        folder = Path(directory)
        config = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
        checkpoint = cls(folder, config, dict(sorted(_tensors(folder, weights))))
        if not checkpoint.is_tied:
            return checkpoint
        untied = {name: t for name, t in checkpoint.tensors.items() if name != _HEAD}
        return replace(checkpoint, tensors=untied)

    @property
    def is_tied(self) -> bool:
        """True when the embedding serves as the head, too."""
        return self.config.get("tie_word_embeddings") is True

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters' names, sorted."""
        return tuple(self.tensors)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Name to shape."""
        return {name: info.shape for name, (_, info) in self.tensors.items()}

    def info(self, name: str) -> tuple[Shape, str]:
        """Shape and safetensors dtype (`"BF16"`); raises InvalidCheckpoint for no such name."""
        info = self._find(name)[1]
        return info.shape, info.dtype

    def read(self, name: str) -> Array:
        """A read-only array over the mapped file; bf16 and fp8 come as ml_dtypes dtypes.

        Raises InvalidCheckpoint for no such name.
        """
        path, info = self._find(name)
        dtype = DTYPES[info.dtype]
        if info.nbytes == 0:
            return np.empty(info.shape, dtype)
        try:
            mapped = np.memmap(path, np.uint8, "r", info.begin, (info.nbytes,))
        except (OSError, ValueError) as error:
            raise InvalidCheckpoint(f"cannot read {name} from {path}: {error}") from error
        array: Array = np.asarray(mapped).view(dtype).reshape(info.shape)
        return array

    def read_block(self, name: str, begin: int, end: int) -> Array:
        """A copy of the flat elements `begin` to `end` of one parameter: [end - begin].

        Nothing of the file stays mapped. Raises InvalidCheckpoint for no such name, for a file that
        cannot be read or was truncated meanwhile.
        """
        path, info = self._find(name)
        dtype = DTYPES[info.dtype]
        assert 0 <= begin <= end <= math.prod(info.shape)
        block: Array = np.empty(end - begin, dtype)
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(info.begin + begin * dtype.itemsize)
                count = _read_fully(file, block.view(np.uint8).data)
        except OSError as error:
            raise InvalidCheckpoint(f"cannot read {name} from {path}: {error}") from error
        if count != block.nbytes:
            raise InvalidCheckpoint(f"{path} ends within {name}; was it changed meanwhile?")
        return block

    def nbytes(self, name: str) -> int:
        """Bytes of one parameter in its file; raises InvalidCheckpoint for no such name."""
        return self._find(name)[1].nbytes

    @property
    def files(self) -> tuple[Path, ...]:
        """The files with weights, sorted."""
        return tuple(sorted({path for path, _ in self.tensors.values()}))

    def _find(self, name: str) -> tuple[Path, TensorInfo]:
        if name not in self.tensors:
            raise InvalidCheckpoint(f"{self.directory} has no parameter {name}")
        return self.tensors[name]


def load_base_shapes(directory: str | os.PathLike[str]) -> dict[str, Shape]:
    """Name to shape of every parameter; raises InvalidCheckpoint."""
    return Checkpoint.open(directory).shapes


def fingerprint(
    source: str | os.PathLike[str] | Checkpoint,
    progress: Callable[[int, str], None] | None = None,
) -> str:
    r"""The base fingerprint, 64 hex digits; raises InvalidCheckpoint.

    sha256 over one line for each parameter, sorted by name (as Unicode code points): compact
    UTF-8 JSON, no spaces, and a final newline byte, of
    `["<name>",[<dim>,…],"<safetensors dtype>","<sha256 of the little-endian bytes, in hex>"]\n`,
    for example `["model.norm.weight",[576],"BF16","9f86…"]`.
    progress: called with (bytes read since the last call, parameter), from several threads.
    """
    checkpoint = source if isinstance(source, Checkpoint) else Checkpoint.open(source)
    with ThreadPoolExecutor(_THREADS) as pool:  # hashlib releases the interpreter lock
        checksums = pool.map(lambda name: _sha256(checkpoint, name, progress), checkpoint.names)
        total = hashlib.sha256()
        for name, checksum in zip(checkpoint.names, checksums, strict=True):
            total.update(fingerprint_line(name, *checkpoint.info(name), checksum))
    return total.hexdigest()


def fingerprint_line(name: str, shape: Shape, dtype: str, sha256: str) -> bytes:
    """What one parameter adds to a fingerprint, in the order of names."""
    return dumps([name, list(shape), dtype, sha256]).encode() + b"\n"


def cached_fingerprint(directory: str | os.PathLike[str], cache_dir: str | os.PathLike[str]) -> str:
    """`fingerprint`, computed again only when a file's path, size or mtime changed."""
    checkpoint = Checkpoint.open(directory)
    entry = Path(cache_dir) / f"{_cache_key(checkpoint)}.fingerprint"
    try:
        known = entry.read_text("ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        known = ""
    if len(known) == hashlib.sha256().digest_size * 2:
        return known
    entry.parent.mkdir(parents=True, exist_ok=True)
    computed = fingerprint(checkpoint)
    with replacing(entry) as file:
        file.write(computed.encode())
    return computed


def _cache_key(checkpoint: Checkpoint) -> str:
    facts: list[object] = [checkpoint.is_tied]
    for path in checkpoint.files:
        status = path.stat()
        facts.append([str(path.resolve()), status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _sha256(checkpoint: Checkpoint, name: str, progress: Callable[[int, str], None] | None) -> str:
    shape, dtype = checkpoint.info(name)
    digest = hashlib.sha256()
    step = max(1, _CHUNK // DTYPES[dtype].itemsize)
    for begin in range(0, numel := math.prod(shape), step):
        block = checkpoint.read_block(name, begin, min(begin + step, numel))
        digest.update(block.view(np.uint8).data)
        if progress is not None:
            progress(block.nbytes, name)
    return digest.hexdigest()


def _read_fully(file: io.RawIOBase, view: memoryview) -> int:
    """Fill `view` (bytes) as far as the file goes; returns the bytes read."""
    count = 0
    while count < len(view) and (step := file.readinto(view[count:])):
        count += step
    return count


def _tensors(folder: Path, weights: str) -> Iterator[tuple[str, tuple[Path, TensorInfo]]]:
    index = folder / f"{weights}.index.json"
    if (folder / weights).exists():
        path = folder / weights
        for name, info in _read_table(path).items():
            yield name, (path, info)
    elif index.exists():
        yield from _sharded(index)
    else:
        raise InvalidCheckpoint(
            f"{folder} has neither {weights} nor {index.name}; give the folder of a Hugging Face"
            " checkpoint in safetensors"
        )


def _sharded(index: Path) -> Iterator[tuple[str, tuple[Path, TensorInfo]]]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise InvalidCheckpoint(f"{index} has no weight_map")
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise InvalidCheckpoint(f"{index} names a file outside its folder: {shard!r}")
    paths = {shard: index.parent / shard for shard in sorted(set(weight_map.values()))}
    if absent := [path for path in paths.values() if not path.exists()]:
        raise InvalidCheckpoint(
            f"the shard {absent[0]} is missing ({len(absent)} of {len(paths)} are); {index.name}"
            " names it: download or copy it there"
        )
    tables = {shard: _read_table(path) for shard, path in paths.items()}
    for name, shard in weight_map.items():
        if name not in tables[shard]:
            raise InvalidCheckpoint(f"{paths[shard]} lacks {name}, which the index puts there")
        yield name, (paths[shard], tables[shard][name])


def _read_table(path: Path) -> Mapping[str, TensorInfo]:
    try:
        with open_regular(path) as file:
            return read_container(file, _MAX_HEADER).tensors
    except (InvalidFile, OSError) as error:
        raise InvalidCheckpoint(f"cannot read {path}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises InvalidCheckpoint."""
    try:
        value = loads(path.read_bytes(), path.name)
    except (InvalidHeader, OSError) as error:
        raise InvalidCheckpoint(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise InvalidCheckpoint(f"{path} is not a JSON object")
    return value
