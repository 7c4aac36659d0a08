"""The best low-rank part of a difference: exact for small matrices, randomised for large ones."""

import hashlib
from dataclasses import dataclass

import numpy as np

from taskvectors.container.strict_json import dumps
from taskvectors.delta import Array, LowRankDelta
from taskvectors.extract.difference import Difference
from taskvectors.extract.settings import InvalidExtraction, Settings
from taskvectors.extract.sparse import square_sum
from taskvectors.format.parameters import MAX_RANK

EXACT = 256
"""The smaller side of the largest matrix that is decomposed exactly."""

OVERSAMPLING = 10
POWER_ITERATIONS = 2
FIRST_RANKS = 32


def low_rank_delta(
    difference: Difference, settings: Settings
) -> tuple[LowRankDelta | None, float, float]:
    """(delta in float32, Σ d² of the difference, Σ σ² of the kept singular values).

    `delta = (U √σ)(√σ Vᵀ)`, None for a difference of zero. Of `settings.rank`, or of the smallest
    rank found that holds the share `settings.energy` of Σ d². The smaller side up to EXACT: by
    LAPACK. Above: by a randomised range finder with power iterations (Halko, Martinsson & Tropp
    2011, algorithm 4.4), grown block by block for an energy; its sketch is seeded. Raises
    InvalidExtraction where the energy needs more than MAX_RANK.
    """
    energy = sum(square_sum(block) for block in difference.values())
    if not energy:
        return None, 0.0, 0.0
    if min(difference.shape) <= EXACT:
        u, sigma, vt = np.linalg.svd(difference.whole().astype(np.float64), full_matrices=False)
    else:
        u, sigma, vt = _randomised(difference, settings, energy)
    rank = _rank(difference.name, sigma, settings, energy)
    root = np.sqrt(sigma[:rank])
    a = (root[:, None] * vt[:rank]).astype(np.float32)
    b = (u[:, :rank] * root).astype(np.float32)
    return LowRankDelta(difference.shape, a, b), energy, float((sigma[:rank] ** 2).sum())


def _rank(name: str, sigma: Array, settings: Settings, energy: float) -> int:
    """Never counts singular values of zero, but at least one."""
    positive = max(1, int(np.count_nonzero(sigma > sigma[0] * np.finfo(np.float32).eps)))
    if settings.rank is not None:
        return min(settings.rank, positive)
    assert settings.energy is not None
    share = np.cumsum(sigma**2) / energy
    rank = min(int(np.searchsorted(share, settings.energy)) + 1, positive)
    if rank > MAX_RANK:
        raise _too_flat(name, settings.energy)
    return rank


def _too_flat(name: str, energy: float) -> InvalidExtraction:
    return InvalidExtraction(
        f"{name} needs more than {MAX_RANK} ranks for `energy` {energy}; lower `energy`, or choose"
        " `method` magnitude"
    )


def _randomised(
    difference: Difference, settings: Settings, energy: float
) -> tuple[Array, Array, Array]:
    """U [out, k], σ [k], Vᵀ [k, in] of the difference projected on an approximate range."""
    matrix = _Matrix(difference)
    rows, columns = matrix.shape
    largest = min(rows, columns)
    generator = _generator(settings, difference.name)
    basis = np.empty((rows, 0), np.float32)
    projected = np.empty((0, columns), np.float32)
    width = FIRST_RANKS if settings.rank is None else settings.rank + OVERSAMPLING
    while True:
        width = min(width, largest - basis.shape[1])
        sketch = generator.standard_normal((columns, width), np.float32)
        block = _range(matrix, sketch, basis, projected)
        basis = np.concatenate([basis, block], axis=1)
        projected = np.concatenate([projected, matrix.transposed_times(block).T])
        if basis.shape[1] == largest or _is_enough(projected, settings, energy):
            break
        if basis.shape[1] >= MAX_RANK:
            assert settings.energy is not None
            raise _too_flat(difference.name, settings.energy)
        width *= 2
    u, sigma, vt = np.linalg.svd(projected, full_matrices=False)
    return basis @ u, sigma.astype(np.float64), vt


def _is_enough(projected: Array, settings: Settings, energy: float) -> bool:
    if settings.energy is None:
        return True
    return square_sum(projected.reshape(-1)) >= settings.energy * energy


def _range(matrix: "_Matrix", sketch: Array, basis: Array, projected: Array) -> Array:
    """Orthonormal [out, width]: the range of `D - basis @ projected`, where D acts strongest."""

    def forward(x: Array) -> Array:
        y = matrix.times(x) - basis @ (projected @ x)
        y = _orthonormal(y)
        return _orthonormal(y - basis @ (basis.T @ y))

    y = forward(sketch)
    for _ in range(POWER_ITERATIONS):
        y = forward(_orthonormal(matrix.transposed_times(y) - projected.T @ (basis.T @ y)))
    return y


@dataclass(frozen=True)
class _Matrix:
    """A difference that is multiplied block by block, without being whole in memory."""

    difference: Difference

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.difference.shape
        return rows, columns

    def times(self, right: Array) -> Array:
        """D @ right: float32 [out, k], right: [in, k]."""
        columns = self.shape[1]
        blocks = self.difference.values()
        return np.concatenate([block.reshape(-1, columns) @ right for block in blocks])

    def transposed_times(self, left: Array) -> Array:
        """Dᵀ @ left: float32 [in, k], left: [out, k]."""
        columns = self.shape[1]
        total = np.zeros((columns, left.shape[1]), np.float32)
        for begin, block in self.difference.blocks():
            rows = block.reshape(-1, columns)
            first = begin // columns
            total += rows.T @ left[first : first + len(rows)]
        return total


def _orthonormal(columns: Array) -> Array:
    return np.asarray(np.linalg.qr(columns)[0])


def _generator(settings: Settings, name: str) -> np.random.Generator:
    """Philox under a key of the seed and the parameter, so that the order does not matter."""
    digest = hashlib.sha256(dumps([settings.seed, name]).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
