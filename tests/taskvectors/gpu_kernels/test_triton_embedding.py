"""Rows of an embedding: the Triton kernel behind its operator equals the reference."""

import numpy as np
import pytest
import torch

from taskvectors.kernels import gpu_ops, reference
from taskvectors.kernels.gpu_step import StepLimits
from taskvectors.kernels.torch_ops import SparseMatrix
from taskvectors.vllm_plugin.arena import ArenaLimits, DeltaArena, RankPart, SiteDelta, SiteShape
from tests.taskvectors.gpu_kernels.steps import DEVICE, assert_close, generator, random_matrix


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("vocabulary", "dim", "density"), [(17, 9, 0.1), (40, 130, 0.6)])
def test_rows_of_all_vectors_equal_the_reference(
    dtype: torch.dtype, vocabulary: int, dim: int, density: float
) -> None:
    """An id outside the vocabulary, and a row of the base, keep their bits."""
    random, site = generator(), SiteShape((vocabulary,), dim, 0)
    limits = StepLimits(tokens=20, rows=4, columns=3, parts=1)
    arena = DeltaArena([site], limits, ArenaLimits(200_000), dtype, DEVICE)
    dense = random_matrix(vocabulary, dim, density, random).to(dtype).float()
    csr = dense.to_sparse_csr()
    crow, col = csr.crow_indices().int(), csr.col_indices().int()
    matrix = SparseMatrix((vocabulary, dim), crow, col, csr.values())
    a, b = torch.randn(19, dim, generator=random), torch.randn(19, vocabulary, generator=random)
    a, b = a.to(dtype), b.to(dtype)
    arena.install(0, {0: SiteDelta(matrix)})
    arena.install(2, {0: SiteDelta(None, (RankPart(0, a, b),))})
    weights = torch.tensor([[0.0, 0, 0], [0.5, 0, -1.5], [0, 0, 2.0], [-0.7, 0, 0]])
    for row in range(1, 4):
        arena.coefficients.write(row, weights[row : row + 1])
    rows = torch.randint(0, 4, (15,), generator=random)
    ids = torch.randint(0, vocabulary, (15,), generator=random)
    ids[0], ids[1], ids[2] = 0, vocabulary - 1, ids[3]
    arena.write_step(rows.numpy(), np.zeros(1, np.int64))
    before = torch.randn(15, dim, generator=random).to(dtype)
    total = torch.zeros(15, dim)
    reference.sparse_rows(total, ids, weights[rows, 0], csr)
    low_rank = (b.float().T @ a.float()).to_sparse_csr()
    reference.sparse_rows(total, ids, weights[rows, 2], low_rank)
    expected = (before.float() + total).to(dtype)
    strange = torch.tensor([-1, vocabulary])
    expected = torch.cat([expected[:13], before[13:]])
    ids[13:] = strange
    y = before.clone().to(DEVICE)
    gpu_ops.add_rows(y, ids.to(DEVICE), arena.number, 0)
    assert_close(y, expected, 19)
    assert torch.equal(y.cpu()[:13][rows[:13] == 0], before[:13][rows[:13] == 0])
    assert torch.equal(y.cpu()[13:], before[13:])
    torch.library.opcheck(gpu_ops.add_rows, (y, ids.to(DEVICE), arena.number, 0))
