"""Interference: every figure against a naive dense computation, and the laws that figures obey."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskvectors.delta import Array, Delta, DenseDelta, LowRankDelta, SparseDelta
from taskvectors.errors import BaseMismatch, ChecksumMismatch, InvalidLoadout, NonFiniteValue
from taskvectors.format import write_vector
from taskvectors.interference import Figures, Report, compare, elements
from taskvectors.vector import BaseInfo, TaskVector
from tests.taskvectors.making import FINGERPRINT, sparse

BASE = BaseInfo("base", FINGERPRINT)
SHAPES = {
    "model.embed_tokens.weight": (11, 6),
    "model.layers.0.mlp.up_proj.weight": (9, 7),
    "model.layers.1.mlp.up_proj.weight": (9, 7),
    "model.layers.10.mlp.up_proj.weight": (9, 7),
    "model.layers.1.self_attn.q_proj.weight": (4, 17),
    "model.norm.weight": (6,),
}
DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


def random_delta(rng: np.random.Generator, shape: tuple[int, ...]) -> Delta:
    """Of any kind; with zeros, ties, negative values and values alike in other vectors."""
    dtype = np.dtype(DTYPES[rng.integers(3)])
    grid = rng.integers(-3, 4, math.prod(shape)) * rng.choice([0.25, 1.0])
    values = np.where(rng.random() < 0.5, grid, rng.standard_normal(len(grid))).astype(dtype)
    kind = rng.choice(["sparse", "dense", "low_rank"])
    if kind == "low_rank" and len(shape) == 2:
        rank = int(rng.integers(1, 4))
        b = rng.integers(-2, 3, (shape[0], rank)).astype(dtype)
        a = rng.standard_normal((rank, shape[1])).astype(dtype)
        return LowRankDelta(shape, a, b, float(rng.choice([-1.5, 0.5, 2.0])))
    if kind == "sparse":
        index = np.flatnonzero(rng.random(len(values)) < rng.choice([0.0, 0.1, 0.6, 1.0]))
        return SparseDelta(shape, index, values[index])
    return DenseDelta(values.reshape(shape))


def random_vector(rng: np.random.Generator) -> TaskVector:
    names = [name for name in SHAPES if rng.random() < 0.7]
    return TaskVector(BASE, {name: random_delta(rng, SHAPES[name]) for name in names})


def dense(delta: Delta) -> Array:
    """What the delta is, in float64, without the code under test."""
    if isinstance(delta, LowRankDelta):
        terms = delta.b.astype(np.float64)[:, :, None] * delta.a.astype(np.float64)[None]
        return terms.sum(1) * delta.scale
    return delta.to_dense().astype(np.float64)


def flat(vector: TaskVector, names: list[str]) -> Array:
    parts = [
        dense(vector.parameters[name]).ravel()
        if name in vector.parameters
        else np.zeros(math.prod(SHAPES[name]))
        for name in names
    ]
    return np.concatenate([*parts, np.zeros(0)])


def naive(one: TaskVector, other: TaskVector, names: list[str]) -> dict[str, float]:
    """The figures as docs/interference.md defines them, element by element."""
    a, b = flat(one, names), flat(other, names)
    mass = opposed_mass = 0.0
    common = opposed = union = 0
    energy = [0.0, 0.0]
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        union += x != 0 or y != 0
        if x != 0 and y != 0:
            common += 1
            mass += min(abs(x), abs(y))
            energy[0] += x * x
            energy[1] += y * y
            if (x < 0) != (y < 0):
                opposed += 1
                opposed_mass += min(abs(x), abs(y))
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return {
        "cosine": float(a @ b) / norms if norms else 0.0,
        "conflict": opposed_mass / mass if common else 0.0,
        "conflict_share": opposed / common if common else 0.0,
        "jaccard": common / union if union else 0.0,
        "left": energy[0] / float(a @ a) if a.any() else 0.0,
        "right": energy[1] / float(b @ b) if b.any() else 0.0,
        "common": common,
    }


def numbers(figures: Figures) -> dict[str, float]:
    fields = {key: getattr(figures, key) for key in ("cosine", "conflict", "conflict_share")}
    left, right = figures.overlap_energy
    return {
        **fields,
        "jaccard": figures.jaccard,
        "left": left,
        "right": right,
        "common": figures.common,
    }


def only_pair(one: TaskVector, other: TaskVector) -> Figures:
    return compare({"one": one, "other": other}).pairs[0].overall


def close(actual: Mapping[str, float], expected: Mapping[str, float]) -> None:
    assert actual == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), block=st.sampled_from([1, 13, 1 << 17]))
def test_figures_equal_a_naive_computation(seed: int, block: int) -> None:
    """Overall, in each layer and in each kind of module, for blocks of any size."""
    rng = np.random.default_rng(seed)
    vectors = {str(i): random_vector(rng) for i in range(3)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elements.blocks, "__defaults__", (block,))
        report = compare(vectors)
    assert [(p.left, p.right) for p in report.pairs] == [("0", "1"), ("0", "2"), ("1", "2")]
    changed = {name for vector in vectors.values() for name in vector.parameters}
    for pair in report.pairs:
        one, other = vectors[pair.left], vectors[pair.right]
        close(numbers(pair.overall), naive(one, other, sorted(changed)))
        layers = {
            "0": [n for n in changed if ".0." in n],
            "1": [n for n in changed if ".1." in n],
            "10": [n for n in changed if ".10." in n],
            "other": [n for n in changed if "layers" not in n],
        }
        assert list(pair.layers) == [layer for layer, names in layers.items() if names]
        for layer, figures in pair.layers.items():
            close(numbers(figures), naive(one, other, layers[layer]))
        up = "model.layers.*.mlp.up_proj.weight"
        if up in pair.kinds:
            close(numbers(pair.kinds[up]), naive(one, other, [n for n in changed if "up" in n]))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_norms_and_counts_equal_a_naive_computation(seed: int) -> None:
    """Stored zeros do not count; elements of unchanged parameters do not, either."""
    rng = np.random.default_rng(seed)
    vectors = {str(i): random_vector(rng) for i in range(2)}
    for found in compare(vectors).vectors:
        vector = vectors[found.name]
        values = flat(vector, list(vector.parameters))
        assert found.norm == pytest.approx(np.linalg.norm(values), rel=1e-9)
        assert found.nnz == np.count_nonzero(values)
        assert found.density == (found.nnz / len(values) if len(values) else 0.0)
        assert found.num_parameters == len(vector.parameters)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_a_pair_does_not_matter(seed: int) -> None:
    """Only the two shares of energy, and the two sides, change places."""
    rng = np.random.default_rng(seed)
    one, other = random_vector(rng), random_vector(rng)
    there, back = numbers(only_pair(one, other)), numbers(only_pair(other, one))
    back["left"], back["right"] = back["right"], back["left"]
    close(there, back)
    first, second = only_pair(one, other).subspace, only_pair(other, one).subspace
    assert (first is None) == (second is None)
    if first is not None and second is not None:
        close(vars(first), vars(second))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), factor=st.sampled_from([2.0**-20, 0.5, 4.0, 2.0**30]))
def test_positive_scaling_of_a_whole_changes_only_what_weighs(seed: int, factor: float) -> None:
    """Cosine, counts, energy shares and directions stay; conflict does if both are scaled."""
    rng = np.random.default_rng(seed)
    one, other = random_vector(rng), random_vector(rng)
    before, after = only_pair(one, other), only_pair(one * factor, other)
    both = only_pair(one * factor, other * factor)
    close(numbers(both), numbers(before))
    kept = {key: value for key, value in numbers(after).items() if key != "conflict"}
    close(kept, {key: value for key, value in numbers(before).items() if key != "conflict"})
    if before.subspace is not None and after.subspace is not None:
        assert vars(after.subspace) == pytest.approx(vars(before.subspace), abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_vector_agrees_with_itself_and_fights_its_negative(seed: int) -> None:
    """Cosine 1 and −1, conflict 0 and 1; support, energy and directions are all shared."""
    one = random_vector(np.random.default_rng(seed))
    for other, cosine, conflict in (
        (one, 1, 0),
        (one * 0.5, 1, 0),
        (-one, -1, 1),
        (one * -3, -1, 1),
    ):
        found = only_pair(one, other)
        if found.common == 0:
            assert numbers(found) == dict.fromkeys(numbers(found), 0)
            continue
        expected = {"cosine": cosine, "conflict": conflict, "conflict_share": conflict}
        close(
            {k: v for k, v in numbers(found).items() if k != "common"},
            {**expected, "jaccard": 1, "left": 1, "right": 1},
        )
        if found.subspace is not None:
            assert found.subspace.left == pytest.approx(1, abs=1e-6)
            assert found.subspace.right == pytest.approx(1, abs=1e-6)


def test_disjoint_supports_share_nothing() -> None:
    """All figures are 0, although both change the same parameter."""
    name = "model.layers.0.mlp.up_proj.weight"
    one = TaskVector(BASE, {name: sparse((9, 7), [0, 5], [1, -1])})
    other = TaskVector(BASE, {name: sparse((9, 7), [1, 4, 62], [1, -1, 3])})
    found = only_pair(one, other)
    assert numbers(found) == dict.fromkeys(numbers(found), 0)


def test_weights_of_conflict_follow_the_smaller_magnitude() -> None:
    """By hand: opposite 1 against 10, alike 3 against 2: 1 / (1 + 2)."""
    one = TaskVector(BASE, {"w": sparse((4,), [0, 1, 2], [1, 3, 9])})
    other = TaskVector(BASE, {"w": sparse((4,), [0, 1, 3], [-10, 2, 9])})
    found = only_pair(one, other)
    assert found.conflict == pytest.approx(1 / 3)
    assert found.conflict_share == 0.5
    assert found.jaccard == 0.5
    assert found.overlap_energy == pytest.approx((10 / 91, 104 / 185))
    assert found.subspace is None


def test_low_rank_cosine_equals_that_of_the_factors() -> None:
    """⟨B A, B′ A′⟩ = tr((A A′ᵀ)(B′ᵀ B)), which never multiplies a matrix out."""
    rng = np.random.default_rng(3)
    deltas = []
    for rank, scale in ((3, 2.0), (5, -0.7)):
        a = rng.standard_normal((rank, 40)).astype(np.float32)
        b = rng.standard_normal((30, rank)).astype(np.float32)
        deltas.append(LowRankDelta((30, 40), a, b, scale))

    def product(x: LowRankDelta, y: LowRankDelta) -> float:
        a, b, c, d = (part.astype(np.float64) for part in (x.a, x.b, y.a, y.b))
        return x.scale * y.scale * float(np.trace((a @ c.T) @ (d.T @ b)))

    one, other = deltas
    expected = product(one, other) / math.sqrt(product(one, one) * product(other, other))
    found = only_pair(TaskVector(BASE, {"w": one}), TaskVector(BASE, {"w": other}))
    assert found.cosine == pytest.approx(expected, rel=1e-12)


def test_files_and_vectors_in_memory_are_compared_alike(tmp_path: Path) -> None:
    """The same report from either, and progress for each parameter."""
    rng = np.random.default_rng(5)
    vectors = {name: random_vector(rng) for name in "abc"}
    for name, vector in vectors.items():
        write_vector(vector, tmp_path / name)
    told: list[tuple[int, int, str]] = []
    files = compare(
        {"a": tmp_path / "a", "b": str(tmp_path / "b"), "c": vectors["c"]},
        progress=lambda *step: told.append(step),
    )
    assert files == compare(vectors)
    changed = sorted({name for vector in vectors.values() for name in vector.parameters})
    assert told == [(i, len(changed), name) for i, name in enumerate(changed, 1)]


def test_other_bases_are_refused() -> None:
    """Also where a base without a fingerprint stands between two that differ; names are told."""
    one, unknown, other = (
        TaskVector(BaseInfo("base", fingerprint), {})
        for fingerprint in (FINGERPRINT, None, "cd" * 32)
    )
    assert compare({"one": one, "unknown": unknown}).base == BaseInfo("base")
    with pytest.raises(BaseMismatch, match=r"'one' and 'other' do not go together"):
        compare({"one": one, "unknown": unknown, "other": other})


def test_other_shapes_are_refused() -> None:
    """Before anything is read."""
    one = TaskVector(BASE, {"w": sparse((4, 5), [0], [1])})
    other = TaskVector(BASE, {"w": sparse((5, 4), [0], [1])})
    with pytest.raises(BaseMismatch, match=r"w has shape \[4, 5\] on one side and \[5, 4\]"):
        compare({"one": one, "other": other})


def test_a_single_vector_is_refused() -> None:
    """A comparison needs two."""
    with pytest.raises(InvalidLoadout, match="at least 2 task vectors, not 1"):
        compare({"one": TaskVector(BASE, {})})


def test_vectors_that_change_nothing_are_compared() -> None:
    """Empty vectors, empty parameters and scalars give zeros."""
    empty = TaskVector(BASE, {})
    odd = {"s": sparse((), [0], [1]), "e": sparse((0, 4), [], []), "z": sparse((3, 3), [], [])}
    for one in (empty, TaskVector(BASE, odd)):
        found = only_pair(one, empty)
        assert numbers(found) == dict.fromkeys(numbers(found), 0)
        assert found.subspace is None


def test_sums_that_overflow_are_refused() -> None:
    """Rather than answered with NaN."""
    huge = np.full((2, 2), 3e38, np.float32)
    vector = TaskVector(BASE, {"w": LowRankDelta((2, 2), huge, huge, 1e200)})
    with pytest.raises(NonFiniteValue, match="the values of w are too large"):
        compare({"one": vector, "other": vector})


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    """The reader's checks hold here, too."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    vector = TaskVector(BASE, {"w": sparse((4,), [0], [1])})
    write_vector(vector, good)
    bad.write_bytes(good.read_bytes()[:-1] + b"\x77")
    with pytest.raises(ChecksumMismatch):
        compare({"good": good, "bad": bad})


def test_json_holds_every_figure() -> None:
    """Layers and kinds on request; the advice always."""
    rng = np.random.default_rng(9)
    report: Report = compare({name: random_vector(rng) for name in "ab"})
    fields = report.to_json()
    assert fields["base"] == {"name": "base", "fingerprint": FINGERPRINT}
    assert [vector["name"] for vector in fields["vectors"]] == ["a", "b"]
    assert len(fields["advice"]) == 2
    (pair,) = fields["pairs"]
    assert "layers" not in pair
    assert pair["cosine"] == pytest.approx(report.pairs[0].overall.cosine, rel=1e-5)
    (detailed,) = report.to_json(per_layer=True)["pairs"]
    assert list(detailed["layers"]) == list(report.layers)
    every = itertools.chain(detailed["layers"].values(), detailed["kinds"].values())
    assert all(part.keys() == detailed["layers"]["0"].keys() for part in every)
