"""The sparse methods of extraction, on whole files, against dense oracles in torch."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from taskvectors.checkpoint import fingerprint
from taskvectors.extract import InvalidExtraction, difference, extract
from taskvectors.format import file_digest, read_header, read_vector
from taskvectors.sparsify import uniform
from taskvectors.vector import DenseDelta, SparseDelta
from tests.taskvectors.making import BF16, save_checkpoint

SHAPES = {"a.weight": (9, 40), "b.weight": (30, 7), "c.weight": (3, 4, 5), "norm.weight": (11,)}
METHODS: list[dict[str, Any]] = [
    {"method": "magnitude", "density": 0.2},
    {"method": "magnitude", "density": 0.2, "scope": "global"},
    {"method": "dare", "density": 0.3, "seed": 4},
    {"method": "della", "density": 0.4, "epsilon": 0.3, "seed": 4},
    {"method": "breadcrumbs", "density": 0.2, "gamma": 0.1},
]


def pair(
    folder: Path, dtype: Any = np.float32, seed: int = 6
) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """Two checkpoints whose differences have many ties and zeros, and these differences."""
    rng = np.random.default_rng(seed)
    before = {n: rng.standard_normal(shape).astype(dtype) for n, shape in SHAPES.items()}
    steps = {n: rng.integers(-6, 7, shape) / 8 for n, shape in SHAPES.items()}
    after = {n: (before[n].astype(np.float32) + steps[n]).astype(dtype) for n in SHAPES}
    base, tuned = save_checkpoint(folder / "base", before), save_checkpoint(folder / "tuned", after)
    return (
        base,
        tuned,
        {
            n: torch.from_numpy(after[n].astype(np.float32) - before[n].astype(np.float32))
            for n in SHAPES
        },
    )


def values_of(path: Path, name: str) -> np.ndarray[Any, Any]:
    """The dense float32 delta that a file holds, flat; zeros where it has none."""
    vector = read_vector(path)
    return vector.delta(name).reshape(-1) if name in vector else np.zeros(0, np.float32)


@pytest.mark.parametrize("options", METHODS, ids=str)
@pytest.mark.parametrize("block", [1, 64])
def test_blocks_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], block: int
) -> None:
    """A difference read in blocks again and again gives the bytes of one that is kept whole."""
    base, tuned, _ = pair(tmp_path)
    whole = extract(base, tuned, tmp_path / "whole", **options)
    monkeypatch.setattr(difference, "BLOCK", block)
    monkeypatch.setattr(difference, "KEPT", 0)
    blocks = extract(base, tuned, tmp_path / "blocks", **options)
    assert blocks.digest == whole.digest == file_digest(tmp_path / "blocks")
    assert blocks.kept == pytest.approx(whole.kept)


@pytest.mark.parametrize(
    "options",
    [
        {"density": 0.001},
        {"density": 0.001, "scope": "global"},
        {"method": "dare", "density": 0.001},
        {"method": "breadcrumbs", "density": 0.001},
    ],
    ids=str,
)
def test_memory_does_not_grow_with_the_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Four times the elements take hardly more memory, and less than the tensor itself."""
    monkeypatch.setattr(difference, "KEPT", 0)
    monkeypatch.setattr(difference, "BLOCK", 1 << 14)
    monkeypatch.setattr("taskvectors.checkpoint._CHUNK", 1 << 14)
    rng, peaks = np.random.default_rng(8), []
    for rows in (500, 2000):
        shape = (rows, 512)
        folders = []
        for side in ("base", "tuned"):
            tensors = {"w.weight": rng.standard_normal(shape, np.float32)}
            folders.append(save_checkpoint(tmp_path / f"{side}{rows}", tensors))
        tracemalloc.start()
        extract(*folders, tmp_path / "x", **options)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.6 * peaks[0]
    assert peaks[1] < 2000 * 512 * 4


@pytest.mark.parametrize("options", METHODS, ids=str)
def test_the_file_says_how_it_was_made(tmp_path: Path, options: dict[str, Any]) -> None:
    """The method and every option it used; vectors are whole whatever the method."""
    base, tuned, full = pair(tmp_path, BF16)
    extract(base, tuned, tmp_path / "x", value_dtype="fp32", **options)
    vector = read_vector(tmp_path / "x")
    drawn_by = {"finetuned_fingerprint": fingerprint(tuned)} if "seed" in options else {}
    assert vector.metadata["extraction"] == {**options, **drawn_by}
    norm = vector.parameters["norm.weight"]
    assert isinstance(norm, DenseDelta)
    np.testing.assert_array_equal(norm.values, full["norm.weight"].numpy())


def test_a_global_threshold_ranks_all_matrices_together(tmp_path: Path) -> None:
    """The largest of all, the first by name and place among equals, against one stable sort."""
    base, tuned, full = pair(tmp_path)
    names = [name for name in sorted(SHAPES) if name != "norm.weight"]
    together = torch.cat([full[name].reshape(-1) for name in names])
    wanted = round(0.15 * len(together))
    order = together.abs().sort(descending=True, stable=True).indices[:wanted]
    expected = torch.zeros_like(together)
    expected[order] = together[order]
    report = extract(base, tuned, tmp_path / "x", density=0.15, scope="global", value_dtype="fp32")
    stored = np.concatenate([values_of(tmp_path / "x", name) for name in names])
    np.testing.assert_array_equal(stored, expected.numpy())
    energy = (together.double() ** 2).sum() + (full["norm.weight"].double() ** 2).sum()
    kept = (expected.double() ** 2).sum() + (full["norm.weight"].double() ** 2).sum()
    assert report.kept == pytest.approx(float(kept / energy))


def test_a_matrix_below_the_global_threshold_is_left_out(tmp_path: Path) -> None:
    """A density for all together may leave a matrix nothing."""
    zeros = {name: np.zeros((4, 4), np.float32) for name in ("small", "large")}
    ones = np.ones((4, 4), np.float32)
    base = save_checkpoint(tmp_path / "base", zeros)
    tuned = save_checkpoint(tmp_path / "tuned", {"small": ones, "large": 2 * ones})
    report = extract(base, tuned, tmp_path / "x", density=0.5, scope="global")
    assert list(read_vector(tmp_path / "x")) == ["large"]
    assert report.unchanged == ("small",)


def test_dare_divides_what_it_keeps(tmp_path: Path) -> None:
    """Each entry by its own random number; survivors are d / p (the paper's rescaling)."""
    base, tuned, full = pair(tmp_path)
    extract(base, tuned, tmp_path / "x", method="dare", density=0.3, seed=9, value_dtype="fp32")
    for name in ("a.weight", "b.weight", "c.weight"):
        flat = full[name].reshape(-1).numpy()
        kept = uniform(fingerprint(tuned), 9, name, np.arange(flat.size)) < 0.3
        expected = np.where(kept, flat / np.float32(0.3), np.float32(0))
        np.testing.assert_array_equal(values_of(tmp_path / "x", name), expected)


def test_another_seed_is_another_vector(tmp_path: Path) -> None:
    """Seeds tell random vectors apart; the same seed gives the same file."""
    base, tuned, _ = pair(tmp_path)
    digests = [
        extract(base, tuned, tmp_path / "x", method="dare", seed=seed).digest for seed in (1, 1, 2)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_two_skills_keep_other_entries(tmp_path: Path) -> None:
    """Under one seed, too: equal draws would make every kept entry collide."""
    (base, one, _), (_, other, _) = pair(tmp_path / "1"), pair(tmp_path / "2", seed=5)
    supports = []
    for number, tuned in enumerate((one, other)):
        extract(base, tuned, tmp_path / f"{number}.file", method="dare", density=0.3)
        supports.append(values_of(tmp_path / f"{number}.file", "a.weight") != 0)
    assert 0 < np.mean(supports[0] & supports[1]) < 0.5 * np.mean(supports[0])


def test_della_divides_by_each_entrys_probability(tmp_path: Path) -> None:
    """Ranks over whole rows in torch; survivors are d / p of their own."""
    base, tuned, full = pair(tmp_path)
    options: dict[str, Any] = {"method": "della", "density": 0.4, "epsilon": 0.25, "seed": 3}
    extract(base, tuned, tmp_path / "x", value_dtype="fp32", **options)
    for name in ("a.weight", "b.weight", "c.weight"):
        rows = full[name].reshape(SHAPES[name][0], -1)
        places = rows.abs().sort(dim=1, stable=True).indices
        ranks = places.argsort(dim=1).double()
        chance = (0.15 + 0.5 * ranks / (rows.shape[1] - 1)).reshape(-1).numpy()
        flat = rows.reshape(-1).numpy()
        kept = uniform(fingerprint(tuned), 3, name, np.arange(flat.size)) < chance
        np.testing.assert_allclose(
            values_of(tmp_path / "x", name), np.where(kept, flat / chance, 0), rtol=1e-6
        )
        assert kept.any()


def test_breadcrumbs_leave_the_outliers_out(tmp_path: Path) -> None:
    """The top is dropped, the next kept, the rest dropped, against one stable sort."""
    base, tuned, full = pair(tmp_path)
    options: dict[str, Any] = {"method": "breadcrumbs", "density": 0.3, "gamma": 0.05}
    extract(base, tuned, tmp_path / "x", value_dtype="fp32", **options)
    for name in ("a.weight", "b.weight", "c.weight"):
        flat = full[name].reshape(-1)
        order = flat.abs().sort(stable=True).indices
        kept = int(0.3 * len(flat))
        bottom = len(flat) - kept - int(0.05 * len(flat))
        expected = torch.zeros_like(flat)
        band = order[bottom : bottom + kept]
        expected[band] = flat[band]
        np.testing.assert_array_equal(values_of(tmp_path / "x", name), expected.numpy())


@pytest.mark.parametrize("values", ["int8", "ternary"])
@pytest.mark.parametrize("index", ["auto", "u8", "u16", "u32", "bitmap"])
def test_values_and_indices_may_be_coded(tmp_path: Path, values: str, index: str) -> None:
    """Codes of 8 bits or one, in any index; what is kept is what full precision keeps."""
    base, tuned, _ = pair(tmp_path)
    extract(base, tuned, tmp_path / "exact", density=0.2, value_dtype="fp32")
    report = extract(base, tuned, tmp_path / "x", density=0.2, value_dtype=values, index=index)
    specs = read_header(tmp_path / "x").parameters
    assert {spec.values for spec in specs.values() if spec.kind == "sparse"} == {values}
    assert index == "auto" or {s.index for s in specs.values() if s.index} == {index}
    exact, coded = read_vector(tmp_path / "exact"), read_vector(tmp_path / "x")
    for parameter in report.parameters:
        left, right = exact.parameters[parameter.name], coded.parameters[parameter.name]
        if isinstance(left, SparseDelta) and isinstance(right, SparseDelta):
            assert left.index.tolist() == right.index.tolist()
            assert (np.sign(left.values) == np.sign(right.values)).all()
            np.testing.assert_allclose(left.values, right.values, atol=0.4)


def test_the_report_adds_up(tmp_path: Path) -> None:
    """Bytes, entries and the entropy bound are those of the file."""
    base, tuned, full = pair(tmp_path)
    report = extract(base, tuned, tmp_path / "x", density=0.2)
    header = read_header(tmp_path / "x")
    assert report.size.nbytes == sum(info.nbytes for info in header.tensors.values())
    assert report.size.stored == report.nnz == sum(p.nnz for p in report.parameters)
    one = next(p for p in report.parameters if p.name == "a.weight")
    share = torch.tensor(one.nnz / 360, dtype=torch.float64)
    entropy = torch.distributions.Bernoulli(share).entropy().item() / np.log(2)
    assert one.size.bound == pytest.approx(360 * entropy / 8 + 2 * one.nnz)
    assert one.size.bound < one.size.nbytes
    assert one.size.per_nonzero == one.size.nbytes / one.nnz
    assert one.energy == pytest.approx(float((full["a.weight"].double() ** 2).sum()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "top"}, "unsupported `method` 'top'; choose magnitude, dare"),
        ({"scope": "layer"}, "unsupported `scope` 'layer'; choose tensor, global"),
        ({"value_dtype": "int4"}, "unsupported `value_dtype` 'int4'; choose fp32"),
        ({"index": "u64"}, "unsupported `index` 'u64'; choose auto, u8"),
        ({"density": 2.0}, "`density` must be above 0 and at most 1, not 2.0"),
        ({"seed": 1}, "`seed` is of no use with `method` magnitude; it takes `density`, `scope`"),
        ({"method": "dare", "rank": 4}, "`rank` is of no use with `method` dare"),
        ({"method": "dare", "seed": -1}, "`seed` must be from 0"),
        ({"method": "lossless", "density": 0.5}, "`density` is of no use .* it takes no options"),
        ({"method": "lossless", "value_dtype": "int8"}, "int8 is of no use with"),
        (
            {"method": "low_rank", "value_dtype": "ternary"},
            "ternary is of no use",
        ),
        (
            {"method": "low_rank", "rank": 4, "energy": 0.5},
            "`rank` and `energy` exclude",
        ),
        ({"method": "low_rank", "rank": 0}, "`rank` must be from 1 to 4096, not 0"),
        ({"method": "low_rank", "energy": 0.0}, "`energy` must be above 0 and at most 1"),
        (
            {"method": "della", "density": 0.1, "epsilon": 0.1},
            "`epsilon` does not fit `density`: ",
        ),
        ({"method": "della", "epsilon": float("nan")}, "`epsilon` must be a finite number"),
        ({"method": "breadcrumbs", "gamma": 1.0}, "`gamma` must be at least 0 and below 1"),
    ],
)
def test_what_cannot_be_done_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    """Before a checkpoint is looked at, in words that say what would be right."""
    with pytest.raises(InvalidExtraction, match=message):
        extract(tmp_path, tmp_path, tmp_path / "x", **options)


def test_a_file_that_cannot_be_written_is_told_first(tmp_path: Path) -> None:
    """A folder that is missing, or a folder where a file should be."""
    with pytest.raises(InvalidExtraction, match=r"there is no folder .*nowhere"):
        extract(tmp_path, tmp_path, tmp_path / "nowhere" / "x")
    with pytest.raises(InvalidExtraction, match="is a folder; name a file"):
        extract(tmp_path, tmp_path, tmp_path)
