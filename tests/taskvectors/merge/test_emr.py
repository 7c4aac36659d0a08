"""EMR merging against FusionBench's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskvectors.errors import InvalidLoadout
from taskvectors.merge import MemorySource, MergedVector, merge_vectors
from taskvectors.vector import BaseInfo, DenseDelta, SparseDelta, TaskVector
from tests.taskvectors.merge import fusion_bench_oracle as fusion_bench
from tests.taskvectors.merge.drawing import Drawn, assert_close, digest_of, drawn, golden, matrices

ONES = (1.0,)


def oracle(case: Drawn) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
    """Unified vector, masks [K, …] and rescalers [K] of FusionBench, in float32."""
    states = [
        {name: torch.from_numpy(dense[name].copy()) for name in case.shapes} for dense in case.dense
    ]
    unified, masks, rescalers = fusion_bench.load("method.emr_merging.utils").emr_merge(states)
    return unified, {name: torch.stack(mask) for name, mask in masks.items()}, rescalers


@settings(max_examples=150, deadline=None)
@given(drawn(tied=True, weights=ONES))
def test_the_unified_vector_is_fusion_benchs(case: Drawn) -> None:
    """Without a task: elected sign times largest agreeing magnitude, to the bit; zero sums too."""
    merged, (unified, _, _) = case.merged("emr"), oracle(case)
    for name in case.shapes:
        np.testing.assert_array_equal(merged[name], unified[name])


@settings(max_examples=150, deadline=None)
@given(drawn(tied=True, weights=ONES), st.integers(0, 3))
def test_a_task_is_recovered_as_by_fusion_bench(case: Drawn, task: int) -> None:
    """With a task: masked and rescaled by one factor for the whole model."""
    task %= len(case.vectors)
    merged, (unified, masks, rescalers) = case.merged("emr", task=str(task)), oracle(case)
    for name in case.shapes:
        if torch.isfinite(rescalers[task]):
            assert_close(merged[name], unified[name] * masks[name][task] * rescalers[task])
        else:
            assert not merged[name].any()


@settings(max_examples=60, deadline=None)
@given(drawn(count=(1, 1), weights=ONES))
def test_one_vector_is_itself(case: Drawn) -> None:
    """EMR of a single vector changes nothing, with or without a task."""
    for parameters in ({}, {"task": "0"}):
        merged = case.merged("emr", **parameters)
        for name in case.shapes:
            # low-rank deltas are multiplied out in another order
            np.testing.assert_allclose(merged[name], case.dense[0][name], rtol=1e-6, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(drawn(tied=True, weights=ONES), st.randoms(use_true_random=False))
def test_emr_does_not_see_the_order(case: Drawn, random: object) -> None:
    """Any order of the vectors gives the same unified vector, where sums are exact."""
    order = list(range(len(case.vectors)))
    random.shuffle(order)  # type: ignore[attr-defined]
    first, second = case.merged("emr"), case.merged("emr", order=order)
    task = case.merged("emr", task="0")
    same_task = case.merged("emr", order=order, task=str(order.index(0)))
    for name in case.shapes:
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_array_equal(task[name], same_task[name])


@settings(max_examples=60, deadline=None)
@given(drawn(tied=False, weights=ONES, count=(2, 4)), st.integers(0, 1))
def test_a_recovered_task_has_its_mean_magnitude(case: Drawn, task: int) -> None:
    """The rescaler's purpose: mean magnitudes, added over the parameters, are those of the task."""
    recovered = case.merged("emr", task=str(task))
    wanted = sum(np.abs(dense).mean(dtype=np.float64) for dense in case.dense[task].values())
    actual = sum(np.abs(dense).mean(dtype=np.float64) for dense in recovered.values())
    assert actual == pytest.approx(wanted, rel=1e-5) or actual == 0


def test_a_zero_sum_elects_minus() -> None:
    """FusionBench's convention, which differs from that of TIES."""
    assert matrices([1.0, 2.0], [-1.0, -2.0]).merged("emr")["w"].tolist() == [-1.0, -2.0]


def test_the_task_must_be_a_vector() -> None:
    """A task that is not one of the vectors is refused."""
    with pytest.raises(InvalidLoadout, match="task must be one of the loadout's vectors, not 'x'"):
        matrices([1.0]).merged("emr", task="x")


@pytest.mark.parametrize(
    ("task", "expected"), [(None, "c3dfafb270e737ec"), ("2", "de88a1e45e9c0fa0")]
)
def test_emr_is_golden(task: str | None, expected: str) -> None:
    """The bytes of a merge never change, because loadouts are cached by digest."""
    delta = golden("emr", (1.0, 1.0, 1.0), task=task).parameters["w"]
    assert isinstance(delta, SparseDelta)
    assert digest_of(delta) == expected


def test_a_vector_twice_is_recovered_once() -> None:
    """Copies do not add up."""
    vector = matrices([1.0, -2.0]).vectors[0]
    sources = [MemorySource("a", vector), MemorySource("a", vector)]
    merged = MergedVector(sources, [1.0, 1.0], "emr", {"task": "a"})
    delta = merged.delta("w")
    assert delta is not None
    assert delta.to_dense().tolist() == [1.0, -2.0]


def test_an_empty_parameter_is_nothing() -> None:
    """A mean over no elements is no error."""
    vector = TaskVector(
        BaseInfo("b"),
        {"v": DenseDelta(np.zeros(0, np.float32)), "w": DenseDelta(np.ones(2, np.float32))},
    )
    merged = merge_vectors([vector, vector], method="emr", task="0")
    assert list(merged.parameters) == ["w"]
