"""The torch products equal the reference at odd shapes, for every dtype."""

import pytest
import torch
from torch import Tensor

from taskvectors.kernels import reference, torch_ops
from taskvectors.kernels.torch_ops import SparseMatrix

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
SEED = 11


def _sparse(out: int, width: int, density: float, generator: torch.Generator) -> SparseMatrix:
    keep = torch.rand(out * width, generator=generator) < density
    index = keep.nonzero().flatten()
    values = torch.randn(len(index), generator=generator)
    return SparseMatrix.from_flat((out, width), index, values)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 3, 32, 33, 65])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (33, 130), (64, 64)])
@pytest.mark.parametrize("density", [0.0, 0.03, 1.0])
def test_sparse_linear_equals_the_reference(
    dtype: torch.dtype, rows: int, shape: tuple[int, int], density: float
) -> None:
    print(f"seed {SEED}")
    generator = torch.Generator().manual_seed(SEED)
    delta = _sparse(*shape, density, generator)
    x = torch.randn(rows, shape[1], generator=generator).to(dtype)
    coef = torch.randn(rows, generator=generator)
    expected = torch.randn(rows, shape[0], generator=generator).to(dtype)
    actual = expected.clone()
    reference.sparse_linear(expected, x, coef, delta.csr)
    torch_ops.sparse_linear(actual, x, coef, delta)
    _assert_close(actual, expected, shape[1])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_sparse_rows_equal_the_reference(dtype: torch.dtype, density: float) -> None:
    print(f"seed {SEED}")
    generator = torch.Generator().manual_seed(SEED)
    delta = _sparse(17, 9, density, generator)
    ids = torch.tensor([0, 16, 3, 3, 16])
    coef = torch.randn(len(ids), generator=generator)
    expected = torch.randn(len(ids), 9, generator=generator).to(dtype)
    actual = expected.clone()
    reference.sparse_rows(expected, ids, coef, delta.csr)
    torch_ops.sparse_rows(actual, ids, coef, delta)
    _assert_close(actual, expected, 1)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 17])
def test_low_rank_linear_equals_the_reference(dtype: torch.dtype, rows: int) -> None:
    print(f"seed {SEED}")
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(rows, 13, generator=generator).to(dtype)
    expected = torch.randn(rows, 9, generator=generator).to(dtype)
    actual, a, blocks = expected.clone(), torch.randn(7, 13, generator=generator).to(dtype), []
    for ranks, outputs in ((slice(0, 3), slice(0, 4)), (slice(3, 7), slice(6, 9))):
        coef = torch.randn(rows, ranks.stop - ranks.start, generator=generator)
        b = torch.randn(coef.shape[1], outputs.stop - outputs.start, generator=generator).to(dtype)
        blocks.append(torch_ops.RankBlock(ranks, outputs, coef, b))
        reference.low_rank_linear(expected[:, outputs], x, coef, a[ranks], b)
    torch_ops.low_rank_linear(actual, x, a, blocks)
    _assert_close(actual, expected, 13 * 4)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(5, 8), (5, 3, 8)])
def test_rms_norm_equals_the_reference(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    print(f"seed {SEED}")
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(shape, generator=generator).to(dtype)
    expected = torch.randn(shape, generator=generator).to(dtype)
    actual, weight = expected.clone(), torch.zeros(5, *[1] * (len(shape) - 2), 8)
    for _ in range(2):
        coef = torch.randn(5, *[1] * (len(shape) - 1), generator=generator)
        delta = torch.randn(8, generator=generator)
        weight += coef * delta
        reference.rms_norm(expected, x, coef, delta, 1e-5)
    torch_ops.rms_norm(actual, x, weight, 1e-5)
    _assert_close(actual, expected, 2)


def _assert_close(actual: Tensor, expected: Tensor, terms: int) -> None:
    tolerance = TOLERANCE[actual.dtype] * max(1.0, terms**0.5)
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)
