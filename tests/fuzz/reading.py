"""What holds for any bytes at all that are given to the reader."""

import math
import os
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from taskvectors.container.dtypes import is_finite
from taskvectors.delta import Delta, LowRankDelta, SparseDelta
from taskvectors.errors import InvalidFile
from taskvectors.format import (
    Exceptions,
    FileHeader,
    VectorReader,
    read_header,
    read_vector,
    validate_file,
)

MOST_PER_BYTE = 256
"""Most bytes of memory per byte of the file: a set bit of a bitmap and its sign become 12 bytes,
and as much again on the way."""

MOST_BESIDE = 1 << 20


def read_everything(path: Path) -> bool:
    """Read `path` in every way; True where it is a valid file.

    Asserts that nothing but an InvalidFile is raised, that all ways agree, that what is read is
    sound, and that memory stays within a multiple of the file's size.
    """
    limit = MOST_PER_BYTE * os.stat(path).st_size + MOST_BESIDE
    with _memory_below(limit):
        validated = _validated(path)
        read = _read(path)
    assert validated == read, f"validate_file says {validated}, the reader {read}"
    return validated


def _validated(path: Path) -> bool:
    try:
        header = validate_file(path)
    except InvalidFile:
        return False
    assert read_header(path) == header
    return True


def _read(path: Path) -> bool:
    try:
        with VectorReader(path) as reader:
            for name in reader.header.parameters:
                _check_delta(reader.header, name, reader.delta(name))
                _check_exceptions(reader.header, name, reader.exceptions(name))
    except InvalidFile:
        return False
    assert len(read_vector(path)) == len(reader.header.parameters)
    return True


def _check_delta(header: FileHeader, name: str, delta: Delta) -> None:
    spec = header.parameters[name]
    assert delta.shape == spec.shape
    assert delta.nnz == spec.nnz
    arrays = [delta.a, delta.b] if isinstance(delta, LowRankDelta) else [delta.values]
    assert all(map(is_finite, arrays))
    if isinstance(delta, SparseDelta):
        _check_index(delta.index, math.prod(delta.shape))


def _check_exceptions(header: FileHeader, name: str, exceptions: Exceptions | None) -> None:
    spec = header.parameters[name]
    assert (0 if exceptions is None else len(exceptions)) == spec.num_exceptions
    if exceptions is not None:
        assert is_finite(exceptions.values)
        _check_index(exceptions.index, math.prod(spec.shape))


def _check_index(index: np.ndarray, numel: int) -> None:
    steps = np.diff(index, prepend=-1)
    assert bool((steps > 0).all())
    assert not len(index) or index[-1] < numel


@contextmanager
def _memory_below(limit: int) -> Iterator[None]:
    already = tracemalloc.is_tracing()  # starting it anew for each file leaks memory in CPython
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        if not already:
            tracemalloc.stop()
    assert peak <= limit, f"reading took {peak} bytes; at most {limit} are allowed"
