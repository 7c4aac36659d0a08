"""SLERP between two fine-tuned checkpoints, against mergekit's on the dense ones."""

import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mergekit.merge_methods.slerp import slerp

from taskvectors.errors import InvalidLoadout
from taskvectors.merge import merge_vectors
from taskvectors.vector import SparseDelta
from tests.taskvectors.making import save_checkpoint
from tests.taskvectors.merge.drawing import Drawn, assert_close, base_of, drawn, matrices

WEIGHTS = (1.0, 0.5, 0.25, 2.0, -0.5)


@settings(max_examples=150, deadline=None)
@given(
    drawn(count=(2, 2), weights=WEIGHTS),
    st.sampled_from((0.0, 0.3, 1.0, 100.0)),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_slerp_is_mergekits(case: Drawn, scale: float, half: bool, seed: int) -> None:
    """base + delta is mergekit's merge of base + τ₁ and base + τ₂, for any base."""
    rng = np.random.default_rng(seed)
    dtype = ml_dtypes.bfloat16 if half else np.float32
    with tempfile.TemporaryDirectory() as folder:
        bases = base_of(
            case,
            Path(folder),
            lambda shape: (rng.standard_normal(shape) * scale).astype(dtype),
        )
        merged = case.merged("slerp", base=folder)
    total = sum(case.weights)
    t = case.weights[1] / total if total else 0.5
    for name, base in bases.items():
        wide = torch.from_numpy(base.astype(np.float64))
        ends = [wide + delta for delta in case.tensors(name)]
        if 0.9994 < abs(cosine(*ends)) < 0.9996:
            continue  # rounding decides which formula it is
        expected = slerp(torch.tensor([t], dtype=torch.float64), ends[0][None], ends[1][None])[0]
        size = max(float(end.abs().max()) for end in ends)
        assert_close(merged[name], expected - wide, times=100, scale=size)


def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first * second).sum() / (first.norm() * second.norm()).clip(1e-30))


def test_slerp_needs_the_base() -> None:
    """Without the base's weights there is no angle between checkpoints."""
    with pytest.raises(InvalidLoadout, match="needs the base's weights: give its checkpoint"):
        matrices([1.0], [2.0]).merged("slerp")


def test_all_weight_on_one_vector_is_that_vector(tmp_path: Path) -> None:
    """t = 0 and t = 1 are the ends, on the arc and on the straight way."""
    case = matrices(np.ones((2, 3)), -np.ones((2, 3)))
    for scale in (0.1, 1e4):
        save_checkpoint(tmp_path, {"w": np.arange(6, dtype=np.float32).reshape(2, 3) * scale})
        for weights, kept in (([2.0, 0.0], 0), ([0.0, 0.5], 1)):
            case.weights = weights
            merged = case.merged("slerp", base=tmp_path)["w"]
            np.testing.assert_allclose(merged, case.dense[kept]["w"], rtol=1e-6, atol=1e-6)


def test_almost_parallel_checkpoints_stay_sparse(tmp_path: Path) -> None:
    """Small sparse vectors on a large base are averaged on the union of their supports."""
    save_checkpoint(tmp_path, {"w": np.full((9, 9), 50, np.float32)})
    vectors = matrices(np.eye(9), np.eye(9)[::-1]).vectors
    delta = merge_vectors(vectors, [1, 3], "slerp", base=tmp_path).parameters["w"]
    assert isinstance(delta, SparseDelta)
    expected = 0.25 * np.eye(9) + 0.75 * np.eye(9)[::-1]
    np.testing.assert_array_equal(delta.to_dense(), expected)
