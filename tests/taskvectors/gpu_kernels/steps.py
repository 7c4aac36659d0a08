"""Random steps, vectors and what the reference makes of them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from taskvectors.kernels.gpu_step import CoefficientRows, StepBuffers, StepLimits

SEED = 23
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def generator() -> torch.Generator:
    print(f"seed {SEED}")
    return torch.Generator().manual_seed(SEED)


def random_rows(limits: StepLimits, random: torch.Generator) -> CoefficientRows:
    """A table whose rows each mix at most `mixed` vectors; every third weight is zero again."""
    coefficients = CoefficientRows(limits, DEVICE)
    for row in range(1, limits.rows):
        weights = torch.zeros(limits.parts, limits.columns)
        chosen = torch.randperm(limits.columns, generator=random)[: limits.mixed]
        weights[:, chosen] = torch.randn(limits.parts, len(chosen), generator=random)
        weights[torch.rand(weights.shape, generator=random) < 0.3] = 0
        coefficients.write(row, weights)
    return coefficients


def planned(
    tokens: int, limits: StepLimits, coefficients: CoefficientRows, random: torch.Generator
) -> StepBuffers:
    """A step of `tokens` tokens, each of a random row."""
    step = StepBuffers(limits, DEVICE)
    rows = torch.randint(0, limits.rows, (tokens,), generator=random)
    step.write(rows.numpy(), coefficients)
    return step


def weights_of(step: StepBuffers, coefficients: CoefficientRows, tokens: int) -> Tensor:
    """[parts, tokens, columns] on the host."""
    return coefficients.weights.cpu()[:, step.token_row[:tokens].cpu().long()]


def random_matrix(out: int, width: int, density: float, random: torch.Generator) -> Tensor:
    keep = torch.rand(out, width, generator=random) < density
    return torch.randn(out, width, generator=random) * keep


def part_bounds(out: int, parts: int) -> list[int]:
    """Where each of `parts` parts begins, of odd sizes, and `out`."""
    return [*np.linspace(0, out, parts + 1).astype(int).tolist()]


def assert_close(actual: Tensor, expected: Tensor, terms: int) -> None:
    tolerance = TOLERANCE[actual.dtype] * max(1.0, terms**0.5)
    torch.testing.assert_close(actual.cpu(), expected, atol=tolerance, rtol=tolerance)


def cat(pieces: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat([piece.to(dtype) for piece in pieces] or [torch.zeros(0, dtype=dtype)])
