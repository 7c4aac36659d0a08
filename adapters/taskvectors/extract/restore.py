"""The fine-tuned checkpoint again, bit for bit, from its base and a lossless task vector."""

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from taskvectors.checkpoint import Checkpoint, fingerprint_line
from taskvectors.container.dtypes import DTYPES
from taskvectors.delta import Array, DenseDelta, SparseDelta
from taskvectors.errors import BaseMismatch, InvalidFile, InvalidHeader
from taskvectors.extract.difference import row_blocks
from taskvectors.extract.dtypes import dtype_of
from taskvectors.extract.lossless import restored
from taskvectors.format import Exceptions, VectorReader, check_against_base

StrPath = str | os.PathLike[str]


class Restoration:
    """Restores the parameters of the fine-tuned checkpoint, one in memory at a time.

    A context manager. Opening checks the file's header, that the vector is lossless and belongs to
    the base by shapes (not by fingerprint: check that once, it reads the whole base). Raises
    InvalidFile, InvalidCheckpoint, BaseMismatch, OSError.
    """

    def __init__(self, vector: StrPath, base: StrPath | Checkpoint) -> None:
        self._base = base if isinstance(base, Checkpoint) else Checkpoint.open(base)
        self._reader = VectorReader(vector)
        try:
            self._dtypes, self.fingerprint = _lossless(self._reader.header.metadata)
            check_against_base(self._reader.header, self._base.shapes, None)
        except BaseException:
            self._reader.close()
            raise

    def __enter__(self) -> "Restoration":
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters' names, sorted."""
        return self._base.names

    def dtype(self, name: str) -> str:
        """The safetensors dtype that `name` had in the fine-tuned checkpoint."""
        return dtype_of(self._dtypes, name, self._base.info(name)[1])

    def tensor(self, name: str) -> Array:
        """The fine-tuned values of one parameter, in their dtype and shape.

        Raises InvalidFile, InvalidCheckpoint.
        """
        shape, _ = self._base.info(name)
        dtype = DTYPES[self.dtype(name)]
        after = np.empty(math.prod(shape), dtype)
        delta, exceptions = self._changes(name)
        for begin, end in row_blocks(shape):
            before = self._base.read_block(name, begin, end)
            after[begin:end] = restored(before, _part(delta, begin, end), dtype)
        if exceptions is not None:
            _put(name, after, exceptions)
        return after.reshape(shape)

    def __iter__(self) -> Iterator[tuple[str, Array]]:
        for name in self.names:
            yield name, self.tensor(name)

    def verify(self) -> None:
        """Restore all and compare with the fingerprint in the file; raises BaseMismatch."""
        total = hashlib.sha256()
        for name, array in self:
            checksum = hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()
            total.update(fingerprint_line(name, array.shape, self.dtype(name), checksum))
        if total.hexdigest() != self.fingerprint:
            raise BaseMismatch(
                f"what is restored has fingerprint {total.hexdigest()}, the fine-tuned checkpoint"
                f" had {self.fingerprint}: is {self._base.directory} the vector's base?"
            )

    def _changes(self, name: str) -> tuple[SparseDelta | DenseDelta | None, Exceptions | None]:
        if name not in self._reader.header.parameters:
            return None, None
        delta = self._reader.delta(name)
        if not isinstance(delta, SparseDelta | DenseDelta):
            raise InvalidFile(f"{name} is low-rank; a lossless task vector is sparse or dense")
        return delta, self._reader.exceptions(name)


def restore(vector: StrPath, base_dir: StrPath | Checkpoint, name: str) -> Array:
    """One parameter of the fine-tuned checkpoint; raises as Restoration does."""
    with Restoration(vector, base_dir) as restoration:
        return restoration.tensor(name)


def _lossless(metadata: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """Dtypes by pattern, and the fingerprint of the fine-tuned checkpoint."""
    extraction = metadata.get("extraction", {})
    if (method := extraction.get("method", "something else")) != "lossless":
        raise InvalidHeader(
            f"the task vector was made by {str(method)[:80]}, which does not restore the fine-tuned"
            " checkpoint; extract it with --lossless"
        )
    dtypes, known = extraction.get("dtypes", {}), extraction.get("finetuned_fingerprint")
    if not (isinstance(dtypes, Mapping) and set(map(str, dtypes.values())) <= DTYPES.keys()):
        raise InvalidHeader("the dtypes of a lossless extraction must name safetensors dtypes")
    if not isinstance(known, str):
        raise InvalidHeader("a lossless extraction must have a finetuned_fingerprint")
    return dtypes, known


def _part(delta: SparseDelta | DenseDelta | None, begin: int, end: int) -> Array:
    """The elements `begin` to `end` of a delta, flat; one zero stands for none."""
    if delta is None:
        return np.zeros(1, np.float32)
    if isinstance(delta, DenseDelta):
        return np.asarray(delta.values.reshape(-1)[begin:end])
    first, last = np.searchsorted(delta.index, (begin, end))
    part = np.zeros(end - begin, delta.values.dtype)
    part[delta.index[first:last] - begin] = delta.values[first:last]
    return part


def _put(name: str, after: Array, exceptions: Exceptions) -> None:
    if exceptions.values.dtype != after.dtype:
        raise InvalidFile(f"{name} is {after.dtype}, its exceptions are {exceptions.values.dtype}")
    after[exceptions.index] = exceptions.values
