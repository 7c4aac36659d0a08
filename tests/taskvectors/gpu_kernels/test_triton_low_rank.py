"""The low-rank Triton products equal the reference: odd shapes, every dtype."""

import numpy as np
import pytest
import torch
from torch import Tensor

from taskvectors.kernels import reference, triton_low_rank
from taskvectors.kernels.gpu_step import CoefficientRows, StepBuffers, StepLimits
from taskvectors.kernels.triton_low_rank import RANK_FIELDS, LowRankSite
from tests.covering import covering
from tests.taskvectors.gpu_kernels.steps import (
    DEVICE,
    assert_close,
    cat,
    generator,
    part_bounds,
    planned,
    random_rows,
    weights_of,
)

LIMITS = StepLimits(tokens=150, rows=9, columns=5, parts=4, mixed=3)
Pairs = dict[tuple[int, int], tuple[Tensor, Tensor]]


def _site(pairs: Pairs, width: int, bounds: list[int], dtype: torch.dtype) -> LowRankSite:
    """pairs: A and B by part and column; behind each lie values that nobody may read."""
    pieces: list[Tensor] = []
    table = torch.zeros(len(bounds) - 1, LIMITS.columns, RANK_FIELDS, dtype=torch.int64)
    for where, (a, b) in pairs.items():
        at = sum(map(len, pieces))
        table[where] = torch.tensor([at, at + a.numel() + 3, len(a)])
        gap = torch.full((3,), float("nan"))
        pieces += [a.flatten(), gap, b.flatten(), gap]
    starts = torch.tensor(bounds, dtype=torch.int32)
    data, most = cat(pieces, dtype), int(starts.diff().max())
    arrays = (table.to(DEVICE), data.to(DEVICE), starts.to(DEVICE))
    return LowRankSite((bounds[-1], width), *arrays, most_rows=most, first_part=1)


def _hidden(dtype: torch.dtype, tokens: int = 64) -> Tensor:
    return torch.full((3, tokens, 5, 33), float("nan"), dtype=dtype, device=DEVICE)


@pytest.mark.parametrize(
    *covering(
        dtype=[torch.float32, torch.bfloat16, torch.float16],
        tokens=[1, 17, 65],
        layer=[((7, 5), 1, 1), ((40, 130), 3, 8), ((150, 129), 2, 33)],
    )
)
def test_all_vectors_of_a_site_equal_the_reference(
    dtype: torch.dtype, tokens: int, layer: tuple[tuple[int, int], int, int]
) -> None:
    """With ranks that differ by vector, and a part and a vector that have none.

    layer: shape, parts, rank.
    """
    shape, parts, rank = layer
    random, bounds, (rows, width) = generator(), part_bounds(shape[0], parts), shape
    coefficients = random_rows(LIMITS, random)
    step = planned(tokens, LIMITS, coefficients, random)
    pairs: Pairs = {}
    for part, column in np.ndindex(parts, LIMITS.columns):
        if column == 2 or (part, column) == (1, 0):
            continue
        size, ranks = bounds[part + 1] - bounds[part], max(1, rank - column)
        a = torch.randn(ranks, width, generator=random) / width**0.5
        pairs[part, column] = (a.to(dtype), torch.randn(ranks, size, generator=random).to(dtype))
    x = torch.randn(tokens, width, generator=random).to(dtype)
    before = torch.randn(tokens, rows + 1, generator=random).to(dtype)
    weights = weights_of(step, coefficients, tokens)
    total = torch.zeros(tokens, rows)
    for (part, column), (a, b) in pairs.items():
        coef = weights[1 + part, :, column][:, None].expand(-1, len(a))
        reference.low_rank_linear(total[:, bounds[part] : bounds[part + 1]], x, coef, a, b)
    expected = before.clone()
    expected[:, :rows] = (before[:, :rows].float() + total).to(dtype)
    y, site = before.clone().to(DEVICE), _site(pairs, width, bounds, dtype)
    triton_low_rank.add_low_rank(y, x.to(DEVICE), site, step, coefficients, _hidden(dtype))
    assert_close(y, expected, 3 * rank)
    base = (weights == 0).all(dim=0).all(dim=-1)
    assert torch.equal(y.cpu()[base], before[base])
    assert torch.equal(y.cpu()[:, rows:], before[:, rows:])


def test_an_overflow_of_one_vector_reaches_only_its_own_tokens() -> None:
    """Tokens with a zero weight keep their bits beside infinite products and infinite x."""
    limits = StepLimits(150, 3, 5, 4)
    coefficients = CoefficientRows(limits, DEVICE)
    coefficients.write(1, torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0]]))
    coefficients.write(2, torch.tensor([[0.0, 0.5, 0.0, 0.0, 0.0]]))
    step = StepBuffers(limits, DEVICE)
    rows = np.array([0, 1, 2, 2, 1, 0, 1])
    step.write(rows, coefficients)
    huge, small = torch.full((1, 6), 60000.0), torch.ones(1, 6)
    pairs = {(0, 0): (huge, huge), (0, 1): (small, small)}
    site = _site(pairs, 6, [0, 6], torch.float32)
    x = torch.ones(len(rows), 6)
    x[[1, 4]], x[6] = 1e38, float("inf")
    y = torch.zeros(len(rows), 6, device=DEVICE)
    hidden = _hidden(torch.float32)
    triton_low_rank.add_low_rank(y, x.to(DEVICE), site, step, coefficients, hidden)
    assert torch.isinf(y.cpu()[rows == 1]).all()
    assert (y.cpu()[rows == 2] == 3).all()
    assert (y.cpu()[rows == 0] == 0).all()


def test_a_pool_without_columns_adds_nothing() -> None:
    """K = 0, and a step without tokens."""
    limits = StepLimits(tokens=70, rows=2, columns=0, parts=1)
    coefficients, step = CoefficientRows(limits, DEVICE), StepBuffers(limits, DEVICE)
    table = torch.zeros(1, 0, RANK_FIELDS, dtype=torch.int64, device=DEVICE)
    starts = torch.tensor([0, 4], dtype=torch.int32, device=DEVICE)
    site = LowRankSite((4, 6), table, torch.zeros(0, device=DEVICE), starts, 4, 0)
    hidden = torch.zeros(1, 8, 0, 4, device=DEVICE)
    for tokens in (0, 3):
        y, x = torch.ones(tokens, 4, device=DEVICE), torch.ones(tokens, 6, device=DEVICE)
        triton_low_rank.add_low_rank(y, x, site, step, coefficients, hidden)
        assert (y == 1).all()
