"""The sparse Triton products equal the reference: odd shapes, every dtype, both ways."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from taskvectors.kernels import reference, triton_sparse
from taskvectors.kernels.gpu_step import CoefficientRows, StepBuffers, StepLimits
from taskvectors.kernels.triton_sparse import SPARSE_FIELDS, SparseScratch, SparseSite
from tests.covering import covering
from tests.taskvectors.gpu_kernels.steps import (
    DEVICE,
    assert_close,
    cat,
    generator,
    part_bounds,
    planned,
    random_matrix,
    random_rows,
    weights_of,
)

LIMITS = StepLimits(tokens=150, rows=9, columns=5, parts=4, mixed=3, pair_tokens=64)


def _site(
    matrices: list[Tensor | None],
    shape: tuple[int, int],
    bounds: list[int],
    dtype: torch.dtype,
    wide: bool = False,
) -> SparseSite:
    """The arrays of all matrices one behind the other, with a gap that nobody may read."""
    crow, col, val = [], [], []
    table = torch.zeros(len(matrices), SPARSE_FIELDS, dtype=torch.int64)
    for column, matrix in enumerate(matrices):
        if matrix is None:
            continue
        csr = matrix.to_sparse_csr()
        at = [sum(map(len, pieces)) for pieces in (crow, col, val)]
        table[column] = torch.tensor([*at, 1])
        crow.append(csr.crow_indices())
        col += [csr.col_indices(), torch.full((3,), 60000)]
        val += [csr.values(), torch.full((3,), float("nan"))]
    indexes = cat(col, torch.int32)
    if not wide:
        indexes = indexes.to(torch.uint16).view(torch.int16)
    starts = torch.tensor(bounds, dtype=torch.int32)
    arrays = (table, cat(crow, torch.int32), indexes, cat(val, dtype), starts)
    return SparseSite(shape, *(array.to(DEVICE) for array in arrays), first_part=1)


def _scratch(dtype: torch.dtype) -> SparseScratch:
    return SparseScratch(
        torch.full((64 * 3 * 70,), float("nan"), device=DEVICE),
        torch.full((64 * 130,), float("nan"), dtype=dtype, device=DEVICE),
    )


def _expected(
    y: Tensor, x: Tensor, matrices: list[Tensor | None], bounds: list[int], weights: Tensor
) -> Tensor:
    total = torch.zeros(y.shape)
    for column, matrix in enumerate(matrices):
        if matrix is None:
            continue
        for part, (start, stop) in enumerate(pairwise(bounds)):
            coef = weights[1 + part, :, column]
            reference.sparse_linear(
                total[:, start:stop], x, coef, matrix[start:stop].to_sparse_csr()
            )
    return (y.float() + total).to(y.dtype)


@pytest.mark.parametrize(
    *covering(
        dtype=[torch.float32, torch.bfloat16, torch.float16],
        tokens=[1, 19, 64, 65],
        site=[((7, 5), 1, 0.3), ((33, 130), 3, 0.05), ((70, 33), 2, 1.0), ((16, 64), 1, 0.0)],
    )
)
def test_all_vectors_of_a_site_equal_the_reference(
    dtype: torch.dtype, tokens: int, site: tuple[tuple[int, int], int, float]
) -> None:
    """Rows of the base keep their bits, columns of a padded head too.

    site: shape, parts, density.
    """
    shape, parts, density = site
    random = generator()
    coefficients = random_rows(LIMITS, random)
    step = planned(tokens, LIMITS, coefficients, random)
    matrices: list[Tensor | None] = [random_matrix(*shape, density, random) for _ in range(5)]
    matrices[1] = None
    matrices[3] = torch.zeros(shape)
    matrices = [m if m is None else m.to(dtype).float() for m in matrices]
    bounds = part_bounds(shape[0], parts)
    placed = _site(matrices, shape, bounds, dtype)
    x = torch.randn(tokens, shape[1], generator=random).to(dtype)
    before = torch.randn(tokens, shape[0] + 2, generator=random).to(dtype)
    weights = weights_of(step, coefficients, tokens)
    y = before.clone().to(DEVICE)
    triton_sparse.add_sparse(y, x.to(DEVICE), placed, step, coefficients, _scratch(dtype))
    expected = before.clone()
    expected[:, : shape[0]] = _expected(before[:, : shape[0]], x, matrices, bounds, weights)
    assert_close(y, expected, 3 * shape[1])
    base = (weights == 0).all(dim=0).all(dim=-1)
    assert torch.equal(y.cpu()[base], before[base])
    assert torch.equal(y.cpu()[:, shape[0] :], before[:, shape[0] :])


@pytest.mark.parametrize("is_tiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_columns_beyond_16_bits_are_found(is_tiled: bool) -> None:
    """Of an input wider than 65,536 features, by both ways."""
    random, shape, limits = generator(), (3, 65_600), StepLimits(150, 2, 1, 2)
    coefficients = random_rows(limits, random)
    coefficients.write(1, torch.tensor([[1.5]]))
    step = planned(2, limits, coefficients, random)
    step.write(np.array([1, 0]), coefficients)
    matrix = torch.zeros(shape)
    matrix[0, 65_599], matrix[2, 65_530:65_540], matrix[2, 0] = 2.0, 1.5, 1.0
    site = _site([matrix], shape, [0, 3], torch.float32, wide=True)
    x = torch.randn(2, shape[1], generator=random)
    weights = weights_of(step, coefficients, 2)
    expected = _expected(torch.zeros(2, 3), x, [matrix], [0, 3], weights)
    y, scratch = torch.zeros(2, 3, device=DEVICE), _scratch(torch.float32)
    if is_tiled:
        triton_sparse.add_tiles(y, x.to(DEVICE), site, step, coefficients)
    else:
        triton_sparse.add_pairs(y, x.to(DEVICE), site, step, coefficients, scratch)
    assert_close(y, expected, 12)
    assert expected[0].abs().min() < expected[0].abs().max()


@pytest.mark.parametrize("tokens", [9, 80])
def test_an_overflow_of_one_vector_reaches_only_its_own_tokens(tokens: int) -> None:
    """Tokens with a zero weight keep their bits beside infinite products and infinite x."""
    random, limits = generator(), StepLimits(150, 3, 2, 1)
    coefficients = random_rows(limits, random)
    coefficients.write(1, torch.tensor([[1.0, 0.0]]))
    coefficients.write(2, torch.tensor([[0.0, 0.5]]))
    step = planned(tokens, limits, coefficients, random)
    huge, small = torch.full((20, 30), 60000.0), torch.ones(20, 30)
    site = replace(_site([huge, small], (20, 30), [0, 20], torch.float32), first_part=0)
    x = torch.ones(tokens, 30)
    rows = step.token_row[:tokens].cpu()
    x[rows == 1] = 1e38
    x[(rows == 1).nonzero()[0]] = float("inf")
    y = torch.zeros(tokens, 20, device=DEVICE)
    triton_sparse.add_sparse(y, x.to(DEVICE), site, step, coefficients, _scratch(torch.float32))
    assert torch.isinf(y.cpu()[rows == 1]).all()
    assert (y.cpu()[rows == 2] == 15).all()
    assert (y.cpu()[rows == 0] == 0).all()


@pytest.mark.parametrize("tokens", [17, 70])
def test_the_same_step_gives_the_same_bits(tokens: int) -> None:
    """Also beside other tokens: a row's sum does not depend on the rest of the step's order."""
    random = generator()
    coefficients = random_rows(LIMITS, random)
    step = planned(tokens, LIMITS, coefficients, random)
    matrices: list[Tensor | None] = [random_matrix(33, 65, 0.2, random) for _ in range(5)]
    site = _site(matrices, (33, 65), [0, 33], torch.float32)
    x = torch.randn(tokens, 65, generator=random).to(DEVICE)
    results = []
    for _ in range(2):
        results.append(torch.zeros(tokens, 33, device=DEVICE))
        triton_sparse.add_sparse(results[-1], x, site, step, coefficients, _scratch(torch.float32))
    assert torch.equal(*results)


def test_a_pool_without_columns_adds_nothing() -> None:
    """K = 0, and a step without tokens."""
    limits = StepLimits(tokens=70, rows=2, columns=0, parts=1)
    coefficients = CoefficientRows(limits, DEVICE)
    step = StepBuffers(limits, DEVICE)
    step.write(np.zeros(3, np.int64), coefficients)
    site = replace(_site([], (4, 6), [0, 4], torch.float32), first_part=0)
    for tokens in (0, 3, 70):
        y = torch.ones(tokens, 4, device=DEVICE)
        x = torch.ones(tokens, 6, device=DEVICE)
        triton_sparse.add_sparse(y, x, site, step, coefficients, _scratch(torch.float32))
        assert (y == 1).all()
