"""While a loadout is in the weights, the coefficients of every other are less by it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from taskvectors.selection import EVERYWHERE, Selection
from taskvectors.spec import Loadout, LoadoutItem
from taskvectors.vllm_plugin.coefficients import CoefficientTable
from taskvectors.vllm_plugin.manager import TaskVectorManager
from taskvectors.vllm_plugin.slots import SlotTable

PARTS = ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj", "model.norm"]
A, B, C = "a" * 64, "b" * 64, "c" * 64
COLUMNS = {A: 2, B: 0}
FIRST = Selection(layers=((0, 0, 0.5),))


def loadout(*items: tuple[str, float, Selection]) -> Loadout:
    return Loadout.build([LoadoutItem(*item) for item in items])


def manager_with(promoted: Loadout) -> TaskVectorManager:
    """A manager whose pool has vectors a and b."""
    manager: Any = TaskVectorManager.__new__(TaskVectorManager)
    manager._slots, manager._loadouts, manager._version = SlotTable(4), {}, 0
    manager._table = CoefficientTable(5, 4, PARTS)
    manager._pool = SimpleNamespace(column=COLUMNS.get)
    manager._promotion = SimpleNamespace(items=promoted.items)
    manager._device = torch.device("cpu")
    manager._arena = None
    assert isinstance(manager, TaskVectorManager)
    return manager


def coefficients(promoted: Loadout, asked: Loadout) -> list[dict[str, float]] | None:
    """What a request for `asked` adds to each part; None for nothing at all."""
    manager = manager_with(promoted)
    request = SimpleNamespace(lora_int_id=7, lora_name="x", lora_path=asked.canonical)
    manager._activate(request, set())
    step = manager._gather([7])
    if step is None:
        return None
    names = {column: digest[0] for digest, column in COLUMNS.items()}
    rows = [step.of_part(part, 1)[0].tolist() for part in range(len(PARTS))]
    return [
        {names[c]: round(value, 6) for c, value in zip(step.columns, row, strict=True)}
        for row in rows
    ]


@pytest.mark.parametrize(
    ("promoted", "asked", "expected"),
    [
        (((A, 0.8, EVERYWHERE),), ((A, 0.8, EVERYWHERE),), None),
        (((A, 0.8, FIRST),), ((A, 0.8, FIRST),), None),
        (((A, 0.1, EVERYWHERE), (B, 0.2, FIRST)), ((A, 0.1, EVERYWHERE), (B, 0.2, FIRST)), None),
        (((A, 0.8, EVERYWHERE),), ((A, 1.0, EVERYWHERE),), [{"a": 0.2}] * 3),
        (((A, 0.8, EVERYWHERE),), ((B, 0.3, EVERYWHERE),), [{"b": 0.3, "a": -0.8}] * 3),
        (
            ((A, 0.8, FIRST),),
            ((A, 0.5, EVERYWHERE),),
            [{"a": 0.1}, {"a": 0.5}, {"a": 0.5}],
        ),
        ((), ((A, 0.5, EVERYWHERE),), [{"a": 0.5}] * 3),
    ],
    ids=["itself", "itself in part", "itself, both", "more", "another", "by part", "unpromoted"],
)
def test_what_is_in_the_weights_is_taken_off(
    promoted: tuple[tuple[str, float, Selection], ...],
    asked: tuple[tuple[str, float, Selection], ...],
    expected: list[dict[str, float]] | None,
) -> None:
    """Per part where selections are used; the promoted loadout itself adds nothing."""
    found = coefficients(loadout(*promoted), loadout(*asked))
    assert found == expected


def test_a_loadout_is_not_answered_when_what_is_promoted_left_the_pool() -> None:
    """That cannot be while it is held; if it were, NaN is no answer."""
    manager = manager_with(loadout((C, 1.0, EVERYWHERE)))
    asked = loadout((A, 1.0, EVERYWHERE))
    request = SimpleNamespace(lora_int_id=7, lora_name="x", lora_path=asked.canonical)
    manager._activate(request, set())
    step = manager._gather([7])
    assert step is not None
    assert step.poisoned_rows() is not None
