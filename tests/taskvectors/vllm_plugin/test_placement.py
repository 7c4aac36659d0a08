"""The rule that decides whether a loadout is composed says yes only where it pays."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskvectors.delta import DenseDelta, LowRankDelta, SparseDelta
from taskvectors.format import VectorWriter, read_header
from taskvectors.selection import parse_selection
from taskvectors.vector import BaseInfo
from taskvectors.vllm_plugin.placement import (
    MARGIN,
    ROW,
    ParameterCost,
    Prospect,
    Window,
    decide,
    predict,
    union_elements,
    vector_cost,
)

SEED = 20
HOT = 1e6


def sparse(density: float, rows: int = 1000, columns: int = 1000) -> ParameterCost:
    return ParameterCost(int(density * rows * columns), rows, rows * columns)


def prospect(*densities: float, requests: float = HOT) -> Prospect:
    return Prospect(predict([{"w": sparse(d)} for d in densities]), requests, 1 << 30)


def test_the_union_of_random_supports_is_what_is_predicted() -> None:
    """Three supports drawn independently overlap as the formula says, within a hundredth."""
    draws = np.random.default_rng(SEED)
    numel = 1_000_000
    masks = [draws.random(numel) < d for d in (0.3, 0.2, 0.1)]
    costs = [ParameterCost(int(mask.sum()), 1000, numel) for mask in masks]
    found = np.count_nonzero(masks[0] | masks[1] | masks[2])
    assert union_elements(costs) == pytest.approx(found, rel=0.01)


def test_a_union_lies_between_its_largest_part_and_the_sum() -> None:
    """For any densities: max ≤ union ≤ min(sum, numel); more vectors never make it smaller."""
    draws = random.Random(SEED)
    for _ in range(500):
        numel = draws.randint(1, 10**7)
        sizes = [draws.randint(0, numel) for _ in range(draws.randint(1, 8))]
        costs = [ParameterCost(size, 1, numel) for size in sizes]
        union = union_elements(costs)
        assert max(sizes) * (1 - 1e-9) <= union <= min(sum(sizes), numel) * (1 + 1e-9), (
            SEED,
            costs,
        )
        assert union_elements([*costs, costs[0]]) >= union * (1 - 1e-9), (SEED, costs)


def test_what_one_vector_has_alone_costs_the_same_after() -> None:
    """Vectors on different parameters have nothing to gain."""
    vectors = [{"a": sparse(0.1)}, {"b": sparse(0.2)}]
    estimate = predict(vectors)
    assert estimate.before == estimate.after == 300_000 + 2000 * ROW
    assert decide(Prospect(estimate, HOT, 1 << 30)).reason == "no_gain"


def test_a_hot_mix_that_overlaps_is_composed() -> None:
    """Eight vectors of a tenth each share more than a quarter of their elements, and all rows."""
    decision = decide(prospect(*[0.1] * 8))
    assert decision.is_worth
    assert decision.reason == "gain"
    before, after = 8 * (1e5 + 1000 * ROW), 1e6 * (1 - 0.9**8) + 1000 * ROW
    assert decision.gain == pytest.approx(1 - after / before)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"estimate": predict([{"w": sparse(0.1)}])}, "one_vector"),
        ({"estimate": predict([])}, "one_vector"),
        ({"requests": 31.9}, "few_requests"),
        ({"estimate": predict([{"w": sparse(0.1)}] * 2)}, "no_gain"),
        ({"share": 0.7}, "shared"),
        ({"requests": 33.0, "estimate": predict([{"w": sparse(0.1, 10, 10)}] * 8)}, "cost"),
        ({"free_bytes": 1 << 20}, "no_room"),
    ],
)
def test_each_reason_against_it(changes: dict[str, Any], reason: str) -> None:
    """Whatever speaks against composing is told by name."""
    decision = decide(dataclasses.replace(prospect(*[0.1] * 8), **changes))
    assert (decision.is_worth, decision.reason) == (False, reason)


def test_what_is_composed_is_served_for_as_long_as_it_gains() -> None:
    """It need not pay for a composition again, and leaves no margin; but a loss ends it."""
    composed = dataclasses.replace(prospect(*[0.1] * 8), is_composed=True)
    gain = decide(composed).gain
    cold = dataclasses.replace(composed, requests=1.0, free_bytes=0)
    assert decide(cold).is_worth
    assert decide(dataclasses.replace(cold, share=1.01 - gain)).is_worth
    assert decide(dataclasses.replace(cold, share=0.99 - gain)).reason == "shared"


def test_a_low_rank_vector_is_not_densified() -> None:
    """Its product fills the parameter, which costs more than its factors and its neighbour."""
    low = ParameterCost(8 * 2000, 1000, 10**6, is_low_rank=True)
    decision = decide(Prospect(predict([{"w": low}, {"w": sparse(0.1)}]), HOT, 1 << 30))
    assert not decision.is_worth
    assert decision.gain < 0
    full = ParameterCost(1000 * 2000, 1000, 10**6, is_low_rank=True)
    assert decide(Prospect(predict([{"w": full}, {"w": sparse(0.5)}]), HOT, 1 << 30)).is_worth


def test_more_requests_never_turn_a_yes_into_a_no() -> None:
    """In random cases; and a yes always saves the margin."""
    draws = random.Random(SEED)
    yes = 0
    for _ in range(500):
        densities = [draws.uniform(0, 0.5) for _ in range(draws.randint(2, 8))]
        requests = 10 ** draws.uniform(0, 5)
        decision = decide(prospect(*densities, requests=requests))
        if decision.is_worth:
            yes += 1
            assert decision.gain >= MARGIN, (SEED, densities)
            assert decide(prospect(*densities, requests=2 * requests)).is_worth, (SEED, densities)
    assert 50 < yes < 450


def test_a_header_tells_the_cost(tmp_path: Path) -> None:
    """Nonzeros of a sparse delta, both factors of a low-rank one, every element of a norm."""
    path = tmp_path / "v.safetensors"
    values = np.ones(3, np.float32)
    with VectorWriter(path, BaseInfo("base", None)) as writer:
        writer.add("a.weight", SparseDelta((4, 5), np.array([0, 7, 19]), values))
        a, b = np.ones((2, 5), np.float32), np.ones((4, 2), np.float32)
        writer.add("b.weight", LowRankDelta((4, 5), a, b))
        writer.add("norm.weight", DenseDelta(values))
        writer.finish({})
    cost = vector_cost(read_header(path))
    assert cost["a.weight"] == ParameterCost(3, 4, 20)
    assert cost["b.weight"] == ParameterCost(18, 4, 20, is_low_rank=True)
    assert cost["norm.weight"] == ParameterCost(3, 0, 3)
    only = parse_selection({"modules": {"a": 1.0, "b": 0.0}}, "test")
    assert set(vector_cost(read_header(path), [only])) == {"a.weight"}


def test_a_window_forgets() -> None:
    """Counts halve with time, and only so many loadouts are watched."""
    window = Window(half_life_s=10, most=2)
    for _ in range(4):
        window.add("a", now=0)
    assert window.count("a", now=10) == pytest.approx(2)
    assert window.add("a", now=20) == pytest.approx(2)
    window.add("b", now=20)
    window.add("c", now=20)
    assert len(window) == 2
    assert window.count("a", now=20) == 0
