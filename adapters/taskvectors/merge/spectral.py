"""Singular values and vectors of deltas, for the methods that merge in their basis.

LAPACK computes them, in float64: the bytes of a result may differ between machines, its values
agree within float32's precision. Directions whose singular value is rounding error are left out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from taskvectors.delta import Array, Delta, DenseDelta, LowRankDelta, Shape
from taskvectors.errors import NonFiniteValue
from taskvectors.merge.parts import Part, present


@dataclass(frozen=True, eq=False)
class Spectrum:
    """`left @ diag(values) @ right`; orthonormal columns of left: [m, r] and rows of right: [r, n].

    values: [r], falling, above rounding error; all float64. r is 0 for a matrix of zeros.
    """

    left: Array
    values: Array
    right: Array

    def largest(self, rank: int) -> "Spectrum":
        """At most `rank` singular values, the largest."""
        return Spectrum(self.left[:, :rank], self.values[:rank], self.right[:rank])


@dataclass(frozen=True, eq=False)
class Product:
    """A matrix, `left @ right`: [m, r] and [r, n] float64."""

    left: Array
    right: Array


def spectrum_of(delta: Delta, weight: float) -> Spectrum:
    """Of one weighted delta of two dimensions; raises NonFiniteValue."""
    if isinstance(delta, LowRankDelta):
        return decompose(weighted_factors(delta, weight))
    return decompose(_wide(delta) * weight)


def spectrum_of_sum(part: Part) -> Spectrum:
    """Of the weighted sum of all deltas, from the factors alone if all are low-rank."""
    terms = [(delta, weight) for delta, weight in present(part) if weight != 0]
    factors = [weighted_factors(d, w) for d, w in terms if isinstance(d, LowRankDelta)]
    if factors and len(factors) == len(terms):
        left = np.hstack([product.left for product in factors])
        return decompose(Product(left, np.vstack([product.right for product in factors])))
    total = np.zeros(part.shape)
    for delta, weight in terms:
        total += _wide(delta) * weight
    return decompose(total)


def spectrum_side_by_side(deltas: Sequence[Delta]) -> Spectrum:
    """Of `[τ₁ … τ_K]`, [m, K n]; from the factors alone if all are low-rank."""
    factors = [weighted_factors(d, 1.0) for d in deltas if isinstance(d, LowRankDelta)]
    if len(factors) < len(deltas):
        return decompose(np.hstack([_wide(delta) for delta in deltas]))
    left = np.hstack([product.left for product in factors])
    return decompose(Product(left, _block_diagonal([product.right for product in factors])))


def weighted_factors(delta: LowRankDelta, weight: float) -> Product:
    """The factors of `weight · delta` in float64."""
    left = delta.b.astype(np.float64) * (delta.scale * weight)
    return Product(left, delta.a.astype(np.float64))


def decompose(matrix: Array | Product) -> Spectrum:
    """The singular value decomposition without what is rounding error; raises NonFiniteValue.

    A thin product is decomposed through the QR of its factors, never multiplied out.
    """
    if isinstance(matrix, Product):
        (m, rank), n = matrix.left.shape, matrix.right.shape[1]
        if rank >= min(m, n):
            return decompose(matrix.left @ matrix.right)
        outer, upper = np.linalg.qr(_finite(matrix.left))
        inner, lower = np.linalg.qr(_finite(matrix.right).T)
        core = decompose(upper @ lower.T)
        return Spectrum(outer @ core.left, core.values, core.right @ inner.T)
    left, values, right = _svd(_finite(matrix))
    least = values.max(initial=0.0) * max(matrix.shape) * np.finfo(np.float32).eps
    rank = int(np.count_nonzero(values > least))
    return Spectrum(left, values, right).largest(rank)


def orthogonal(matrix: Array) -> Array:
    """The nearest matrix with orthonormal columns or rows, `U Vᵀ`; zero where `matrix` is."""
    spectrum = decompose(matrix)
    nearest: Array = spectrum.left @ spectrum.right
    return nearest


def delta_of(left: Array, right: Array, shape: Shape) -> Delta | None:
    """`left @ right` in float32: low-rank where that is smaller, else dense; None for zero."""
    if not (left.any() and right.any()):
        return None
    if left.shape[1] * sum(shape) < math.prod(shape):
        return LowRankDelta(shape, right.astype(np.float32), left.astype(np.float32))
    return DenseDelta((left @ right).astype(np.float32))


def _svd(matrix: Array) -> tuple[Array, Array, Array]:
    """LAPACK's divide and conquer may fail to converge; it then gets another matrix, the transpose.

    The matrix is scaled to 1, so that nothing overflows.
    """
    scale = np.abs(matrix).max(initial=0.0) or 1.0
    try:
        left, values, right = np.linalg.svd(matrix / scale, full_matrices=False)
    except np.linalg.LinAlgError:
        turned, values, turned_left = np.linalg.svd(matrix.T / scale, full_matrices=False)
        left, right = turned_left.T, turned.T
    return left, values * scale, right


def _finite(matrix: Array) -> Array:
    if not np.isfinite(matrix).all():
        raise NonFiniteValue("a delta has values that are not finite; its SVD does not exist")
    return matrix


def _wide(delta: Delta) -> Array:
    """Every element in float64, products of factors too."""
    if isinstance(delta, LowRankDelta):
        product = weighted_factors(delta, 1.0)
        return np.asarray(product.left @ product.right)
    return delta.to_dense().astype(np.float64)


def _block_diagonal(blocks: Sequence[Array]) -> Array:
    rows, columns = (sum(block.shape[axis] for block in blocks) for axis in (0, 1))
    matrix, row, column = np.zeros((rows, columns)), 0, 0
    for block in blocks:
        matrix[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return matrix
