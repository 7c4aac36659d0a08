"""Coefficients reach each row of a step as its loadout says, and nothing else."""

import numpy as np
import pytest
import torch

from taskvectors.selection import Selection
from taskvectors.vllm_plugin.coefficients import CoefficientTable, WeightedColumn

CPU = torch.device("cpu")
PARTS = ["model.embed_tokens", "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"]


def test_each_row_has_the_weights_of_its_loadout() -> None:
    table = CoefficientTable(3, 4, PARTS)
    table.write(1, [WeightedColumn(0, 0.5), WeightedColumn(2, -1.0)])
    table.write(2, [WeightedColumn(2, 2.0)])
    step = table.gather(np.array([0, 2, 1, 1]), CPU)
    assert step is not None
    assert step.columns == (0, 2)
    expected = [[0, 0], [0, 2], [0.5, -1], [0.5, -1]]
    assert step.of_part(1, 4).tolist() == expected


def test_a_step_of_the_base_alone_costs_nothing() -> None:
    table = CoefficientTable(3, 4, PARTS)
    table.write(1, [WeightedColumn(0, 0.5)])
    assert table.gather(np.array([0, 0]), CPU) is None
    table.clear(1)
    assert table.gather(np.array([1, 0]), CPU) is None


def test_layers_and_modules_weigh_each_part() -> None:
    table = CoefficientTable(3, 2, PARTS)
    table.write(1, [WeightedColumn(1, 2.0, Selection(layers=((1, 1, 0.25),)))])
    table.write(2, [WeightedColumn(1, 3.0)])
    step = table.gather(np.array([1, 2]), CPU)
    assert step is not None
    assert not step.is_uniform((1, 2))
    assert step.is_uniform((0, 1)), "layer 0 and the embedding are both outside layer 1"
    assert [step.of_column(p, 2, 1).tolist() for p in range(3)] == [[0, 3], [0, 3], [0.5, 3]]


def test_a_vector_named_twice_adds_up() -> None:
    table = CoefficientTable(2, 1, PARTS)
    table.write(1, [WeightedColumn(0, 1.0), WeightedColumn(0, 0.5, Selection(((0, 0, 1.0),)))])
    step = table.gather(np.array([1]), CPU)
    assert step is not None
    assert [step.of_part(p, 1).item() for p in range(3)] == [1.0, 1.5, 1.0]


def test_padding_rows_are_zero() -> None:
    table = CoefficientTable(2, 1, PARTS)
    table.write(1, [WeightedColumn(0, 1.0)])
    step = table.gather(np.array([1, 1]), CPU)
    assert step is not None
    assert step.of_part(0, 4).flatten().tolist() == [1, 1, 0, 0]


def test_a_poisoned_row_is_marked_even_with_an_empty_pool() -> None:
    table = CoefficientTable(3, 1, PARTS)
    step = table.gather(np.array([0, table.poison_row]), CPU)
    assert step is not None
    poisoned = step.poisoned_rows()
    assert poisoned is not None
    assert poisoned.tolist() == [False, True]
    table.write(2, [WeightedColumn(0, 1.0)])
    step = table.gather(np.array([0, 2]), CPU)
    assert step is not None
    assert step.poisoned_rows() is None


def test_a_slice_keeps_its_rows() -> None:
    table = CoefficientTable(3, 1, PARTS)
    table.write(1, [WeightedColumn(0, 1.0)])
    table.write(2, [WeightedColumn(0, 2.0)])
    step = table.gather(np.array([1, 2, 0, 2]), CPU)
    assert step is not None
    assert step.slice(1, 3).of_part(0, 2).flatten().tolist() == [2, 0]


@pytest.mark.parametrize("rows", [[], [0]])
def test_an_empty_step_has_no_coefficients(rows: list[int]) -> None:
    assert CoefficientTable(2, 1, PARTS).gather(np.array(rows, dtype=np.int64), CPU) is None
