"""Small vectors for the encodings of task vector files, and the golden files made of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from taskvectors.delta import Delta
from taskvectors.format import Exceptions, VectorWriter
from taskvectors.vector import BaseInfo, DenseDelta, SparseDelta
from tests.taskvectors.making import BF16, FINGERPRINT, sparse

FOLDER = Path(__file__).parent / "golden"
FEW, ROWS, EMPTY, NORM = "layers.0.q.weight", "layers.0.up.weight", "layers.1.q.weight", "norm.bias"


SOME = settings(max_examples=60, deadline=None)
FLOATS = (np.dtype(np.float32), np.dtype(np.float16), BF16)


@st.composite
def sparse_deltas(draw: st.DrawFn) -> SparseDelta:
    """Any shape and density, with zeros, ties and negatives; rows with and without values."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = tuple(draw(st.lists(st.integers(0, 30), max_size=3)))
    if draw(st.booleans()):
        shape = (draw(st.integers(1, 4)), draw(st.integers(64, 300)))
    numel = math.prod(shape)
    count = round(numel * draw(st.sampled_from([0, 0.02, 0.5, 1])))
    index = np.sort(rng.choice(numel, count, replace=False)) if numel else np.empty(0)
    spread = draw(st.sampled_from([1e-30, 1e-3, 1.0, 1e3]))
    numbers = rng.normal(size=count) * spread
    if draw(st.booleans()):
        numbers = np.round(numbers / spread) * spread  # ties and zeros
    dtype = draw(st.sampled_from(FLOATS))
    return SparseDelta(shape, index.astype(np.int64), numbers.astype(dtype))


def write(path: Path, delta: Any, exact: Exceptions | None = None, **how: Any) -> str:
    """A file with the one parameter `w`."""
    with VectorWriter(path, BaseInfo("b"), **how) as writer:
        writer.add("w", delta, exact)
        return writer.finish({})


@dataclass(frozen=True)
class Golden:
    """A golden file: how it is written, and its digest."""

    value_dtype: str | None
    index: str
    digest: str
    exceptions: bool = False

    def write(self, path: Path) -> str:
        """Write it anew; returns the digest."""
        base = BaseInfo("example/base", FINGERPRINT)
        exact = exceptions() if self.exceptions else {}
        with VectorWriter(path, base, value_dtype=self.value_dtype, index=self.index) as writer:
            for name, delta in deltas().items():
                writer.add(name, delta, exact.get(name))
            return writer.finish({"license": "apache-2.0"})


def deltas() -> dict[str, Delta]:
    """Few values, rows with scales of their own, none at all, and a dense bias; with zeros."""
    k = np.arange(150)
    steps = ((k * 37 % 101 - 50) / 64 * np.where(k < 75, 1, 8)).astype(np.float32)
    return {
        FEW: sparse([6, 50], [0, 3, 17, 259, 299], np.array([1, -2, 0, 0.5, -4], BF16)),
        ROWS: SparseDelta((2, 83), np.concatenate([k[:75], k[75:] + 8]), steps),
        EMPTY: sparse([3, 7], [], []),
        NORM: DenseDelta(np.linspace(-1.5, 1.5, 7).astype(np.float16)),
    }


def exceptions() -> Mapping[str, Exceptions]:
    """What no difference restores: a negative zero, the smallest and largest numbers."""
    tiny, huge = np.finfo(np.float64).smallest_subnormal, np.finfo(np.float64).max
    return {
        FEW: Exceptions(np.array([1, 299]), np.array([-0.0, 3.0e38], np.float32)),
        EMPTY: Exceptions(np.array([0, 5, 20]), np.array([tiny, -huge, 1 / 3])),
        NORM: Exceptions(np.array([6]), np.array([-0.0], BF16)),
    }


GOLDEN = {
    "bitmap": Golden(
        None, "bitmap", "6565e3d669f40f7e085de76780421dc6a5ff70e8b331fda873201062c7f7c4b7"
    ),
    "int8": Golden(
        "int8", "u8", "70e42b5605d416355833bf5d7361239bf639b70e839be1a130ec091a6e2c99d7"
    ),
    "int8_bitmap": Golden(
        "int8", "bitmap", "d1c0056dafb9d486d3172541a6b9cb909e8c393a79eaff8311e85039a93263f4"
    ),
    "ternary": Golden(
        "ternary", "u16", "59aac23aa083a9845655ea7b8d463cb8db5228b57d47e864df79af4d4b4951e7"
    ),
    "ternary_bitmap": Golden(
        "ternary", "bitmap", "4cd19ba1eba0e43be395a80ee3d6c2438f09cf36c8500b64a8e4e5de0ee1ede1"
    ),
    "exceptions": Golden(
        None,
        "auto",
        "bc127921bfbde0f435410a920998646b6c6c2ae4927232c21f73e8fe29942e51",
        exceptions=True,
    ),
}
