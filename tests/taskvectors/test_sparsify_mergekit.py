"""Choosing entries as mergekit 0.1.5 does, where magnitudes have no ties."""

from typing import Any

import numpy as np
import pytest
import torch

from taskvectors import sparsify

mergekit = pytest.importorskip("mergekit.sparsify")

SHAPES = [(7, 50), (1, 9), (64,), (33, 2)]


def distinct(shape: tuple[int, ...], seed: int, zeros: float) -> np.ndarray[Any, Any]:
    """Nonzero magnitudes that all differ, in random order and sign, and (last) some zeros."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    values = rng.permutation(np.arange(1, size + 1)) * rng.choice([-1, 1], size) / 16
    values[rng.random(size) < zeros] = 0
    return values.reshape(shape).astype(np.float32)


def support(dense: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    index = np.flatnonzero(dense)
    return index, dense.reshape(-1)[index]


def scattered(dense: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The support's kept values in the dense shape."""
    index, values = support(dense)
    out = np.zeros(dense.size, np.float32)
    out[index[mask]] = values[mask]
    return out.reshape(dense.shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("zeros", [0.0, 0.6])
@pytest.mark.parametrize("density", [0.05, 0.3, 0.9, 1.0])
def test_top_k_is_mergekits_magnitude(shape: tuple[int, ...], zeros: float, density: float) -> None:
    """With mergekit's count, `max(1, int(density · numel))`."""
    dense = distinct(shape, 1, zeros)
    index, values = support(dense)
    mask = sparsify.top_k(index, values, max(1, int(density * dense.size)))
    theirs = mergekit.magnitude(torch.from_numpy(dense), density)
    np.testing.assert_array_equal(scattered(dense, mask), theirs.numpy())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("zeros", [0.0, 0.6])
@pytest.mark.parametrize("density", [0.05, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.2, 0.9])
def test_breadcrumbs_are_mergekits_magnitude_outliers(
    shape: tuple[int, ...], zeros: float, density: float, gamma: float
) -> None:
    """Also where the outliers and the density exceed what there is."""
    dense = distinct(shape, 2, zeros)
    index, values = support(dense)
    mask = sparsify.breadcrumbs(index, values, dense.size, density, gamma)
    theirs = mergekit.magnitude_outliers(torch.from_numpy(dense), density, gamma=gamma)
    np.testing.assert_array_equal(scattered(dense, mask), theirs.numpy())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("zeros", [0.0, 0.6])
def test_della_has_mergekits_probabilities(
    shape: tuple[int, ...], zeros: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probabilities that mergekit hands to its own random draw."""
    dense = distinct(shape, 3, zeros)
    seen: list[torch.Tensor] = []

    def draw(probabilities: torch.Tensor) -> torch.Tensor:
        seen.append(probabilities)
        return torch.ones_like(probabilities)

    monkeypatch.setattr(torch, "bernoulli", draw)
    mergekit.della_magprune(torch.from_numpy(dense), 0.4, 0.15)
    index, values = support(dense)
    _, ours = sparsify.della(index, values, shape, 0.4, 0.15, "a", 1, "w")
    np.testing.assert_allclose(ours, seen[0].reshape(-1).numpy()[index], rtol=0, atol=1e-6)
