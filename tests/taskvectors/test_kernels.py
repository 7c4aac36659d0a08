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
@pytest.mark.parametrize("rows", [1, 3, 8, 9, 65])
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


def _assert_close(actual: Tensor, expected: Tensor, terms: int) -> None:
    tolerance = TOLERANCE[actual.dtype] * max(1.0, terms**0.5)
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)
