"""How little of a full fine-tune is enough: entries, bits and ranks, through real files."""

import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np

from science.cells import Cell, Facts
from science.library import Library
from taskvectors.delta import Array, Delta, LowRankDelta, SparseDelta
from taskvectors.format import read_vector, write_vector
from taskvectors.sparsify import dare, top_k
from taskvectors.vector import TaskVector

SKILLS = ("json", "uppercase")
COARSE = (1.0, 0.1, 0.01, 0.0025)
FINE = (0.05, 0.005, 0.02, 0.2, 0.5)
ENCODINGS = ("bf16", "ternary", "int8")
CONTROLLED = (1.0, 0.1, 0.01, 0.0025)
"""Densities of the bf16 curves at which the control is asked, too."""
RANKS = (64, 16, 4, 1, 8, 2, 32)
SEED = 0


def coarse_cells(library: Library) -> Iterator[Cell]:
    """Four densities, every encoding, by magnitude."""
    return _curve(library, COARSE, ENCODINGS)


def fine_cells(library: Library) -> Iterator[Cell]:
    """The densities between. int8 is left out: its entries are bf16's but for 1/127 of a scale."""
    return _curve(library, FINE, ENCODINGS[:2])


def other_cells(library: Library) -> Iterator[Cell]:
    """At random and rescaled (DARE), by magnitude and rescaled, and truncated singular values."""
    for density in (0.0025, 0.0001):
        for skill in SKILLS:
            for seed in (1, 2):
                yield _cell(library, skill, f"dare seed {seed}", density, "bf16")
    for density in (0.1, 0.01, 0.05, 0.02, 0.2, 0.5):
        for skill in SKILLS:
            yield _cell(library, skill, "dare", density, "bf16")
            yield _cell(library, skill, "magnitude rescaled", density, "bf16")
    for density in (0.0025, 0.005, 0.001, 0.0003, 0.0001):
        for skill in SKILLS:
            yield _cell(library, skill, "dare", density, "bf16")
    for density in (0.0025, 0.01, 0.1):
        for skill in SKILLS:
            yield _cell(library, skill, "dare", density, "ternary")
    for rank in RANKS:
        for skill in SKILLS:
            yield _cell(library, skill, "svd", rank, "bf16")


def _curve(
    library: Library, densities: tuple[float, ...], encodings: tuple[str, ...]
) -> Iterator[Cell]:
    for density in densities:
        for skill in SKILLS:
            for encoding in encodings:
                yield _cell(library, skill, "magnitude", density, encoding)


def _cell(library: Library, skill: str, cut: str, amount: float, encoding: str) -> Cell:
    def build() -> tuple[TaskVector, Facts]:
        full = library.full(skill)
        if cut == "svd":
            return through_file(truncate(library, skill, int(amount)), encoding)
        pick = PICKS[cut]
        parts = {name: pick(name, delta, amount) for name, delta in full.parameters.items()}
        return through_file(TaskVector(full.base, parts), encoding)

    asks_control = cut in ("magnitude", "dare") and encoding == "bf16" and amount in CONTROLLED
    probes = ("style", "control") if asks_control else ("style",)
    facts = {"skill": skill, "cut": cut, "amount": amount, "encoding": encoding}
    name = f"{skill} cut by {cut} to {amount:g} in {encoding}"
    return Cell(name, "density", build, probes, facts=facts)


def by_magnitude(_name: str, delta: Delta, density: float) -> SparseDelta:
    """The largest entries of one parameter."""
    flat = delta.to_dense().reshape(-1)
    index = np.arange(flat.size, dtype=np.int64)
    return _kept(delta, index, flat, top_k(index, flat, max(1, int(density * flat.size))))


def by_magnitude_rescaled(name: str, delta: Delta, density: float) -> SparseDelta:
    """The largest entries, stretched to the norm of the whole delta."""
    cut = by_magnitude(name, delta, density)
    whole, left = (np.linalg.norm(v.astype(np.float64)) for v in (delta.to_dense(), cut.values))
    return cut * float(whole / left)


def at_random(name: str, delta: Delta, density: float, seed: int = SEED) -> SparseDelta:
    """DARE: each entry with probability `density`, divided by it (arXiv 2311.03099, §3.2)."""
    flat = delta.to_dense().reshape(-1)
    index = np.arange(flat.size, dtype=np.int64)
    kept = dare(index, flat, density, "science", seed, name)
    return _kept(delta, index, flat / np.float32(density), kept)


def truncate(library: Library, skill: str, rank: int) -> TaskVector:
    """The best approximation of that rank, of every matrix."""
    full = library.full(skill)
    bases = singular_bases(library, skill)
    parts: dict[str, Delta] = {}
    for name, delta in full.parameters.items():
        dense, (side, basis) = delta.to_dense(), bases[name]
        top = basis[:, :rank]
        a, b = (top.T, dense @ top) if side == "right" else (top.T @ dense, top)
        parts[name] = LowRankDelta(delta.shape, np.ascontiguousarray(a), np.ascontiguousarray(b))
    return TaskVector(full.base, parts)


@cache
def singular_bases(library: Library, skill: str) -> dict[str, tuple[str, Array]]:
    """Of every matrix the leading singular vectors of its shorter side, `[side, max rank]`."""
    return {
        name: _basis(delta.to_dense()) for name, delta in library.full(skill).parameters.items()
    }


def _basis(dense: Array) -> tuple[str, Array]:
    """Eigenvectors of the smaller Gram matrix, largest eigenvalue first."""
    wide = dense.astype(np.float64)
    side = "right" if dense.shape[0] >= dense.shape[1] else "left"
    gram = wide.T @ wide if side == "right" else wide @ wide.T
    vectors = np.linalg.eigh(gram)[1][:, ::-1][:, : max(RANKS)]
    return side, vectors.astype(np.float32)


def through_file(vector: TaskVector, encoding: str) -> tuple[TaskVector, Facts]:
    """What a reader gets back from the file that would be shipped, and the file's bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vector.safetensors"
        write_vector(vector, path, value_dtype=encoding)
        return read_vector(path), {"bytes": path.stat().st_size}


def _kept(delta: Delta, index: Array, flat: Array, kept: Array) -> SparseDelta:
    return SparseDelta(delta.shape, index[kept], flat[kept])


PICKS: dict[str, Callable[[str, Delta, float], SparseDelta]] = {
    "magnitude": by_magnitude,
    "magnitude rescaled": by_magnitude_rescaled,
    "dare": at_random,
    **{f"dare seed {seed}": partial(at_random, seed=seed) for seed in (1, 2)},
}
