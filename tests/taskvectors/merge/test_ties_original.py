"""TIES as its authors published it, against a dense transcription of their algorithm."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskvectors.checkpoint import Checkpoint
from taskvectors.errors import InvalidLoadout
from taskvectors.merge import MemorySource, MergedVector, merge_vectors
from taskvectors.selection import parse_selection
from tests.taskvectors.making import save_checkpoint
from tests.taskvectors.merge.drawing import Dense, Drawn, drawn, matrices
from tests.taskvectors.merge.oracles import assert_equal, assert_near, ties_of_the_authors

densities = st.integers(1, 100).map(lambda percent: percent / 100)
ways = st.sampled_from(("mean", "sum", "max"))


def merged(case: Drawn, folder: Path, extra: int, **parameters: object) -> tuple[Dense, int]:
    """Our merge on a base with `extra` elements that no vector changes, and its size."""
    tensors = {name: np.ones(shape, np.float32) for name, shape in case.shapes.items()}
    tensors["zz.untouched.weight"] = np.ones(extra, np.float32)
    base = save_checkpoint(folder, tensors)
    numel = sum(tensor.size for tensor in tensors.values())
    return case.merged("ties_original", base=base, **parameters), numel


@settings(max_examples=100, deadline=None)
@given(
    drawn(count=(1, 6), weights=(1.0,), tied=True),
    densities,
    ways,
    st.sampled_from((1.0, -0.5)),
    st.sampled_from((0, 3, 200)),
)
def test_ties_original_is_the_authors_where_magnitudes_repeat(
    tmp_path_factory: pytest.TempPathFactory,
    case: Drawn,
    density: float,
    way: str,
    scale: float,
    extra: int,
) -> None:
    """Equals at the cut stay, zero sums take the majority of the model; density counts the base."""
    parameters = {"density": density, "merge": way, "lambda": scale}
    ours, numel = merged(case, tmp_path_factory.mktemp("base"), extra, **parameters)
    theirs = ties_of_the_authors(case, density, way, scale, numel)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name].astype(np.float32))


@settings(max_examples=100, deadline=None)
@given(drawn(count=(1, 6), weights=(1.0,), tied=False), densities, ways)
def test_ties_original_is_the_authors(
    tmp_path_factory: pytest.TempPathFactory, case: Drawn, density: float, way: str
) -> None:
    """Normal values, of every kind of delta."""
    ours, numel = merged(case, tmp_path_factory.mktemp("base"), 5, density=density, merge=way)
    assert_near(case, ours, ties_of_the_authors(case, density, way, 1.0, numel), factor=8)


def test_a_zero_sum_takes_the_sign_of_the_model(tmp_path: Path) -> None:
    """Mostly minus elects minus where values cancel; in a draw the negative ones are kept."""
    minus = matrices([2.0, -1.0, -3.0], [-2.0, -1.0, 0.0])
    assert merged(minus, tmp_path, 0, density=1.0)[0]["w"].tolist() == [-2.0, -1.0, -3.0]
    plus = matrices([2.0, 1.0, 3.0], [-2.0, 1.0, 0.0])
    assert merged(plus, tmp_path, 0, density=1.0)[0]["w"].tolist() == [2.0, 1.0, 3.0]
    draw = matrices([2.0, 1.0, -3.0], [-2.0, 1.0, 0.0])
    assert merged(draw, tmp_path, 0, density=1.0)[0]["w"].tolist() == [-2.0, 1.0, -3.0]
    largest = merged(draw, tmp_path, 0, density=1.0, merge="max")[0]
    assert largest["w"].tolist() == [0.0, 1.0, -3.0]


def test_the_order_of_vectors_does_not_matter(tmp_path: Path) -> None:
    """Nor do duplicates share a cut by accident: each vector has its own."""
    case = matrices([3.0, 0.5, -1.0, 0.0], [-2.0, 0.25, -1.0, 4.0], [3.0, 0.5, -1.0, 0.0])
    base = save_checkpoint(tmp_path, {"w": np.ones(4, np.float32)})
    first = case.merged("ties_original", base=base, density=0.5)
    assert_equal(first, case.merged("ties_original", base=base, density=0.5, order=[2, 1, 0]))


def test_a_selection_is_trimmed_as_the_vector_that_it_leaves(tmp_path: Path) -> None:
    """What is not selected neither takes part nor counts among the largest."""
    case = matrices([5.0, 4.0, 1.0])
    vector = case.vectors[0]
    both = type(vector)(
        vector.base,
        {
            f"layers.{n}.w.weight": delta * (1 + n)
            for n, delta in enumerate([*[vector.parameters["w"]] * 2])
        },
    )
    base = save_checkpoint(tmp_path, {name: np.ones(3, np.float32) for name in both.parameters})
    selection = parse_selection({"layers": ["0"]}, "test")
    result = MergedVector(
        [MemorySource("a", both)],
        [1.0],
        "ties_original",
        {"density": 0.2, "lambda": 1.0, "merge": "mean"},
        selections=[selection],
        base=Checkpoint.open(base),
    )
    kept = {name: delta.to_dense().tolist() for name, delta in result.deltas()}
    assert kept == {"layers.0.w.weight": [5.0, 4.0, 0.0]}


def test_the_base_is_needed() -> None:
    """Without the base nobody knows how large the whole model is."""
    with pytest.raises(InvalidLoadout, match="give the base checkpoint as well"):
        merge_vectors(matrices([1.0]).vectors, None, "ties_original")


def test_weights_are_refused(tmp_path: Path) -> None:
    """The authors' formula knows none, neither of a vector nor of its layers."""
    vectors = matrices([1.0]).vectors
    with pytest.raises(InvalidLoadout, match="knows no weights"):
        merge_vectors(vectors, [0.5], "ties_original")
    halves = parse_selection({"layers": {"0": 0.5}}, "test")
    with pytest.raises(InvalidLoadout, match=r"factor 0 or 1, not 0\.5"):
        MergedVector(
            [MemorySource("a", vectors[0])], [1.0], "sce", {"select_topk": 1.0}, selections=[halves]
        )
