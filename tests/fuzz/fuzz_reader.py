#!/usr/bin/env python
"""The fuzz target: `python -m tests.fuzz.fuzz_reader CORPUS [libFuzzer options]`; see README.md."""

import os
import random
import sys
import tracemalloc
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["taskvectors"]):
    from tests.fuzz.reading import read_everything

from tests.fuzz.mutation import mutated

_DESCRIPTOR = os.memfd_create("fuzzed")
_PATH = Path(f"/proc/self/fd/{_DESCRIPTOR}")


def read_bytes(data: bytes) -> None:
    """Whatever `data` is, the reader does what it promises."""
    os.ftruncate(_DESCRIPTOR, 0)
    os.pwrite(_DESCRIPTOR, data, 0)
    read_everything(_PATH)


def mutate(data: bytes, most: int, seed: int) -> bytes:
    """A change that keeps checksums right, made from `seed`."""
    return mutated(data, most, random.Random(seed), atheris.Mutate)


if __name__ == "__main__":
    tracemalloc.start()
    atheris.Setup(sys.argv, read_bytes, custom_mutator=mutate)
    atheris.Fuzz()
