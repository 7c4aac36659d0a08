"""KnOTS: FusionBench's alignment, then mergekit's TIES, on dense deltas."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskvectors.merge import merge_vectors
from taskvectors.vector import LowRankDelta
from tests.taskvectors.merge import fusion_bench_oracle as fusion_bench
from tests.taskvectors.merge import mergekit_oracle as mergekit
from tests.taskvectors.merge.drawing import Drawn, assert_close, drawn, matrices, vector_of

NAME = "layers.0.up.weight"
DENSITIES = (0.1, 0.3, 0.5, 1.0)


def aligned(deltas: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]] | None:
    """(U, the vectors' parts Σ Vₖ) of FusionBench; None where rounding decides what they are."""
    basis, values, parts = fusion_bench.load("method.knots.knots_utils").subspace_alignment(
        list(deltas)
    )
    every = torch.linalg.svdvals(torch.cat(list(deltas), 1))
    share = every / every.max().clip(1e-300)
    steps = -torch.diff(share)[share[1:] > 1e-8]
    if ((share > 1e-8) & (share < 1e-3)).any() or (steps < 1e-4).any() or len(values) == 0:
        return None
    scaled = [values[:, None] * part for part in parts]
    return basis, [part * (part.abs() > 1e-11 * values[0]) for part in scaled]


def mergekit_ties(
    parts: Sequence[torch.Tensor], weights: Sequence[float], density: float
) -> torch.Tensor:
    return mergekit.merged(
        "ties",
        parts,
        {"weight": weights, "density": [density] * len(parts)},
        normalize=True,
        rescale=False,
        int8_mask=False,
        **{"lambda": 1.0},
    )


def is_close_call(parts: Sequence[torch.Tensor], weights: Sequence[float], density: float) -> bool:
    """Whether magnitudes at the cut of a part, or a sum of votes, are too close to tell."""
    for part in parts:
        magnitudes = part.abs().flatten().sort(descending=True).values
        count = max(1, int(density * len(magnitudes)))
        edge = magnitudes[count - 1 : count + 1]
        if len(edge) == 2 and edge[1] > 0 and edge[0] - edge[1] < 1e-5 * edge[0]:
            return True
    total = sum(w * part for w, part in zip(weights, parts, strict=True))
    return bool(((total.abs() < 1e-6) & (parts[0].abs() > 1e-11)).any())


@settings(max_examples=100, deadline=None)
@given(
    drawn(tied=False, weights=(1.0, 0.5, 2.0, -0.5)),
    st.sampled_from(DENSITIES),
    st.sampled_from((1.0, -0.5)),
)
def test_knots_is_ties_in_fusion_benchs_basis(case: Drawn, density: float, scale: float) -> None:
    """Matrices are aligned and taken back; other parameters are merged by TIES as they are."""
    merged = case.merged("knots", density=density, **{"lambda": scale})
    for name, shape in case.shapes.items():
        present = [k for k, vector in enumerate(case.vectors) if name in vector.parameters]
        weights = [case.weights[k] for k in present]
        deltas = [case.tensors(name)[k] for k in present]
        basis = aligned(deltas) if deltas and len(shape) == 2 else None
        if len(shape) == 2 and basis is None:
            continue
        parts = deltas if basis is None else basis[1]
        if not parts or is_close_call(parts, weights, density):
            continue
        expected = scale * mergekit_ties(parts, weights, density)
        size = max(float(delta.abs().max()) for delta in deltas)
        back = expected if basis is None else basis[0] @ expected
        assert_close(merged[name], back, times=20, scale=size)


@pytest.mark.parametrize("seed", range(20))
def test_equal_weights_are_fusion_benchs_ties(seed: int) -> None:
    """With equal weights TIES in the basis is FusionBench's own, which keeps one element more."""
    rng = np.random.default_rng(seed)
    count, shape = int(rng.integers(2, 5)), tuple(rng.integers(4, 20, 2).tolist())
    case = matrices(*rng.standard_normal((count, *shape)))
    basis = aligned(case.tensors("w"))
    assert basis is not None
    flat = torch.stack([part.flatten() for part in basis[1]])
    ties = fusion_bench.load("method.ties_merging.ties_merging_utils").ties_merging
    expected = basis[0] @ ties(flat, 0.3, "mean").reshape(basis[1][0].shape)
    density = (int(0.3 * flat.shape[1]) + 1.5) / flat.shape[1]
    assert_close(case.merged("knots", density=density)["w"], expected, times=20)


@settings(max_examples=60, deadline=None)
@given(drawn(count=(1, 1), weights=(1.0,)), st.integers(1, 3))
def test_copies_of_a_vector_are_the_vector(case: Drawn, number: int) -> None:
    """With density 1 nothing is trimmed and nothing conflicts."""
    copies = matrices(*[case.dense[0][NAME]] * number)
    assert_close(copies.merged("knots", density=1)["w"], case.dense[0][NAME], times=5)


@settings(max_examples=40, deadline=None)
@given(
    drawn(count=(2, 3), tied=False, kinds=("dense",), weights=(1.0, 0.5), least=3),
    st.sampled_from((2.0**-20, 2.0**12)),
)
def test_knots_scales(case: Drawn, factor: float) -> None:
    """Vectors twice as large make a merge twice as large, however small they are."""
    name = NAME
    if aligned(case.tensors(name)) is None:
        return
    arrays = [dense[name] for dense in case.dense]
    plain = matrices(*arrays, weights=case.weights).merged("knots")["w"]
    scaled = matrices(*[array * factor for array in arrays], weights=case.weights)
    assert_close(scaled.merged("knots")["w"], plain * factor, times=20)


def test_low_rank_vectors_stay_low_rank() -> None:
    """Their alignment has the sum of their ranks at most, and comes from the factors alone."""
    rng = np.random.default_rng(2)
    factors = [
        (rng.standard_normal((2, 40)), rng.standard_normal((30, 2)), scale) for scale in (0.5, 2.0)
    ]
    low_rank = [
        LowRankDelta((30, 40), a.astype(np.float32), b.astype(np.float32), scale)
        for a, b, scale in factors
    ]
    case = Drawn([vector_of({"w": delta}) for delta in low_rank], [1.0, 1.0], {"w": (30, 40)})
    merged = merge_vectors(case.vectors, method="knots").parameters["w"]
    assert isinstance(merged, LowRankDelta)
    assert merged.rank == 4
    basis = aligned(case.tensors("w"))
    assert basis is not None
    expected = basis[0] @ mergekit_ties(basis[1], [1.0, 1.0], 0.2)
    assert_close(merged.to_dense(), expected, times=20)
