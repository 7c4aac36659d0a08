"""Coefficients reach each row of a step as its loadout says, and nothing else."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from taskvectors.selection import Selection
from taskvectors.vllm_plugin.coefficients import (
    CoefficientTable,
    StepCoefficients,
    WeightedColumn,
)

CPU = torch.device("cpu")
PARTS = ["model.embed_tokens", "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"]


def gathered(table: CoefficientTable, rows: Sequence[int]) -> StepCoefficients | None:
    """Of a step whose rows have these table rows."""
    return table.gather(*np.unique(np.array(rows, np.int64), return_inverse=True), CPU)


def test_each_row_has_the_weights_of_its_loadout() -> None:
    table = CoefficientTable(3, 4, PARTS)
    table.write(1, [WeightedColumn(0, 0.5), WeightedColumn(2, -1.0)])
    table.write(2, [WeightedColumn(2, 2.0)])
    step = gathered(table, [0, 2, 1, 1])
    assert step is not None
    assert step.columns == (0, 2)
    expected = [[0, 0], [0, 2], [0.5, -1], [0.5, -1]]
    assert step.of_part(1, 4).tolist() == expected


def test_a_step_of_the_base_alone_costs_nothing() -> None:
    table = CoefficientTable(3, 4, PARTS)
    table.write(1, [WeightedColumn(0, 0.5)])
    assert gathered(table, [0, 0]) is None
    table.clear(1)
    assert gathered(table, [1, 0]) is None


def test_layers_and_modules_weigh_each_part() -> None:
    table = CoefficientTable(3, 2, PARTS)
    table.write(1, [WeightedColumn(1, 2.0, Selection(layers=((1, 1, 0.25),)))])
    table.write(2, [WeightedColumn(1, 3.0)])
    step = gathered(table, [1, 2])
    assert step is not None
    assert not step.is_uniform((1, 2))
    assert step.is_uniform((0, 1)), "layer 0 and the embedding are both outside layer 1"
    assert [step.of_column(p, 2, 1).tolist() for p in range(3)] == [[0, 3], [0, 3], [0.5, 3]]


def test_a_vector_named_twice_adds_up() -> None:
    table = CoefficientTable(2, 1, PARTS)
    table.write(1, [WeightedColumn(0, 1.0), WeightedColumn(0, 0.5, Selection(((0, 0, 1.0),)))])
    step = gathered(table, [1])
    assert step is not None
    assert [step.of_part(p, 1).item() for p in range(3)] == [1.0, 1.5, 1.0]


def test_padding_rows_are_zero() -> None:
    table = CoefficientTable(2, 1, PARTS)
    table.write(1, [WeightedColumn(0, 1.0)])
    step = gathered(table, [1, 1])
    assert step is not None
    assert step.of_part(0, 4).flatten().tolist() == [1, 1, 0, 0]


def test_a_poisoned_row_is_marked_even_with_an_empty_pool() -> None:
    table = CoefficientTable(3, 1, PARTS)
    step = gathered(table, [0, table.poison_row])
    assert step is not None
    poisoned = step.poisoned_rows()
    assert poisoned is not None
    assert poisoned.tolist() == [False, True]
    table.write(2, [WeightedColumn(0, 1.0)])
    step = gathered(table, [0, 2])
    assert step is not None
    assert step.poisoned_rows() is None


def test_a_slice_keeps_its_rows() -> None:
    table = CoefficientTable(3, 1, PARTS)
    table.write(1, [WeightedColumn(0, 1.0)])
    table.write(2, [WeightedColumn(0, 2.0)])
    step = gathered(table, [1, 2, 0, 2])
    assert step is not None
    assert step.slice(1, 3).of_part(0, 2).flatten().tolist() == [2, 0]


@pytest.mark.parametrize("rows", [[], [0]])
def test_an_empty_step_has_no_coefficients(rows: list[int]) -> None:
    assert gathered(CoefficientTable(2, 1, PARTS), rows) is None
