"""What is searched, and what a candidate is in a request."""

import random

import pytest

from outfitter.config import InvalidConfig
from outfitter.tuning.space import Candidate, Space
from taskvectors.errors import InvalidLoadout
from taskvectors.spec import parse_task_vectors

REQUEST_METHODS = ("linear", "ties", "dare_linear", "dare_ties", "della", "breadcrumbs", "sce")


@pytest.mark.parametrize("method", REQUEST_METHODS)
def test_every_candidate_is_a_valid_request(method: str) -> None:
    """Whatever is drawn, for each method; within the bounds and in hundredths."""
    space = Space(3, (-0.5, 1.25), (method,), (0.05, 1.0))
    rng = random.Random(5)
    for _ in range(200):
        candidate = space.draw(rng)
        fields = candidate.task_vectors(["a", "b", "n/c@3"])
        if fields is not None:
            assert parse_task_vectors(fields).method == method
        if space.has_weights(method):
            assert all(-0.5 <= weight <= 1.25 for weight in candidate.weights)
            assert all(round(weight, 2) == weight for weight in candidate.weights)
        assert Candidate.from_json(candidate.to_json()) == candidate


def test_what_has_no_weight_is_left_out_of_a_sum() -> None:
    """A linear loadout without any is the base, which has no field at all."""
    assert Candidate((0.0, 0.5)).task_vectors("ab") == {
        "vectors": [{"name": "b", "weight": 0.5}],
        "method": "linear",
    }
    assert Candidate((0.0, 0.0)).task_vectors("ab") is None


def test_baselines() -> None:
    """The mean and the sum at equal weights, and each alone, whatever the bounds."""
    space = Space(2, (0.9, 1.5), ("ties",))
    assert [one.weights for one in space.equals] == [(0.5, 0.5), (1.0, 1.0)]
    assert [one.weights for one in space.alone] == [(1.0, 0.0), (0.0, 1.0)]
    assert {one.method for one in (*space.equals, *space.alone)} == {"linear"}
    assert Space(1).equals == Space(1).alone


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"weights": (1.0, 1.0)}, "--weights 1:1"),
        ({"weights": (0.0, 99.0)}, "--weights 0:99"),
        ({"density": (0.0, 1.0)}, "--density 0:1"),
        ({"methods": ("tall_masks",)}, "tall_masks"),
        ({"methods": ("nothing",)}, "nothing"),
        ({"methods": ("model_stock",)}, "model_stock"),
    ],
)
def test_what_cannot_be_searched_is_refused(fields: dict, words: str) -> None:
    """With the value."""
    with pytest.raises((InvalidConfig, InvalidLoadout), match=words):
        Space(2, **fields)


def test_a_candidate_reads_well() -> None:
    """In tables and plots."""
    assert Candidate((0.5, 0.0), "ties", 0.25).describe("ab") == "a 0.5; ties, density 0.25"
    assert Candidate((0.0, 0.0)).describe("ab") == "base"
