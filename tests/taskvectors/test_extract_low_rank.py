"""Low-rank extraction, exact and randomised, against the full decomposition in torch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from taskvectors.extract import InvalidExtraction, difference, extract, low_rank
from taskvectors.format import read_vector
from taskvectors.vector import DenseDelta, LowRankDelta
from tests.taskvectors.making import save_checkpoint


def decaying(rows: int, columns: int, seed: int) -> np.ndarray[Any, Any]:
    """A matrix with singular values 1, 0.9, 0.81, …"""
    torch.manual_seed(seed)
    k = min(rows, columns)
    u, v = (torch.linalg.qr(torch.randn(n, k, dtype=torch.float64))[0] for n in (rows, columns))
    return np.asarray((u * 0.9 ** torch.arange(k, dtype=torch.float64)) @ v.T, np.float32)


def files(folder: Path, full: dict[str, np.ndarray[Any, Any]]) -> tuple[Path, Path]:
    zeros = {name: np.zeros_like(array) for name, array in full.items()}
    return save_checkpoint(folder / "base", zeros), save_checkpoint(folder / "tuned", full)


@pytest.fixture(params=["exact", "randomised", "randomised in blocks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The ways to decompose, on matrices of test size."""
    if request.param != "exact":
        monkeypatch.setattr(low_rank, "EXACT", 0)
        monkeypatch.setattr(low_rank, "FIRST_RANKS", 4)
    if request.param == "randomised in blocks":
        monkeypatch.setattr(difference, "BLOCK", 100)
        monkeypatch.setattr(difference, "KEPT", 0)
    return str(request.param)


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (64, 64)])
@pytest.mark.parametrize("rank", [1, 7, 25])
def test_a_rank_gets_the_best_approximation(
    tmp_path: Path, way: str, shape: tuple[int, int], rank: int
) -> None:
    """Within 1 % of the least error that any matrix of this rank has (Eckart and Young)."""
    full = decaying(*shape, seed=rank)
    base, tuned = files(tmp_path, {"w.weight": full})
    report = extract(base, tuned, tmp_path / "x", method="low_rank", rank=rank, value_dtype="fp32")
    delta = read_vector(tmp_path / "x").parameters["w.weight"]
    assert isinstance(delta, LowRankDelta)
    assert delta.rank == rank
    sigma = torch.linalg.svdvals(torch.from_numpy(full).double())
    best = float((sigma[rank:] ** 2).sum())
    error = float(((full.astype(np.float64) - delta.to_dense()) ** 2).sum())
    assert best * 0.999 <= error <= best * 1.01 + 1e-9
    assert report.kept == pytest.approx(float((sigma[:rank] ** 2).sum() / (sigma**2).sum()), 1e-3)


@pytest.mark.parametrize("energy", [0.3, 0.9, 0.999])
def test_an_energy_gets_about_the_smallest_rank(tmp_path: Path, way: str, energy: float) -> None:
    """What is stored holds the share that was asked for, with at most one rank more than needed."""
    full = decaying(70, 50, seed=1)
    base, tuned = files(tmp_path, {"w.weight": full})
    report = extract(
        base, tuned, tmp_path / "x", method="low_rank", energy=energy, value_dtype="fp32"
    )
    delta = read_vector(tmp_path / "x").parameters["w.weight"]
    assert isinstance(delta, LowRankDelta)
    sigma = torch.linalg.svdvals(torch.from_numpy(full).double())
    share = (sigma**2).cumsum(0) / (sigma**2).sum()
    needed = int((share < energy).sum()) + 1
    assert needed <= delta.rank <= needed + 1
    stored = float((delta.to_dense().astype(np.float64) ** 2).sum())
    assert stored / float((full.astype(np.float64) ** 2).sum()) >= energy - 1e-6
    assert report.kept >= energy


def test_a_low_rank_difference_comes_back_whole(tmp_path: Path, way: str) -> None:
    """A rank above that of the difference stores no more than there is."""
    rng = np.random.default_rng(5)
    full = (rng.standard_normal((40, 3)) @ rng.standard_normal((3, 50))).astype(np.float32)
    base, tuned = files(tmp_path, {"w.weight": full})
    extract(base, tuned, tmp_path / "x", method="low_rank", rank=8, value_dtype="fp32")
    delta = read_vector(tmp_path / "x").parameters["w.weight"]
    assert isinstance(delta, LowRankDelta)
    assert delta.rank == 3
    np.testing.assert_allclose(delta.to_dense(), full, atol=1e-4)


def test_only_changed_matrices_get_factors(tmp_path: Path, way: str) -> None:
    """Vectors and kernels of convolutions are dense; what did not change has no delta."""
    rng = np.random.default_rng(7)
    shapes = {"emb": (30, 12), "conv": (3, 4, 5), "norm": (9,)}
    full = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    base, tuned = files(tmp_path, full | {"same": np.zeros((20, 20), np.float32)})
    report = extract(base, tuned, tmp_path / "x", method="low_rank", rank=2, value_dtype="fp32")
    vector = read_vector(tmp_path / "x")
    kinds = {name: type(delta) for name, delta in vector.parameters.items()}
    assert kinds == {"conv": DenseDelta, "emb": LowRankDelta, "norm": DenseDelta}
    np.testing.assert_array_equal(vector.delta("conv"), full["conv"])
    assert report.unchanged == ("same",)
    assert next(p for p in report.parameters if p.name == "emb").size.stored == 2 * (30 + 12)


def test_a_sketch_is_seeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed gives the same file on one machine, another one a slightly different one."""
    monkeypatch.setattr(low_rank, "EXACT", 0)
    base, tuned = files(tmp_path, {"w.weight": decaying(60, 50, 1)})
    digests = [
        extract(
            base, tuned, tmp_path / "x", method="low_rank", rank=3, seed=s, value_dtype="fp32"
        ).digest
        for s in (1, 1, 2)
    ]
    assert digests[0] == digests[1]
    assert read_vector(tmp_path / "x").metadata["extraction"]["seed"] == 2


def test_an_energy_beyond_every_rank_is_refused(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More ranks than a file may hold are an error that says what to do instead."""
    monkeypatch.setattr(low_rank, "MAX_RANK", 8)
    full = np.random.default_rng(2).standard_normal((60, 50)).astype(np.float32)
    base, tuned = files(tmp_path, {"w.weight": full})
    with pytest.raises(InvalidExtraction, match=r"w.weight needs more than 8 ranks"):
        extract(base, tuned, tmp_path / "x", method="low_rank", energy=0.9)
    assert not (tmp_path / "x").exists()
