"""Slots go to the least recently used loadout that is not running."""

from taskvectors.vllm_plugin.slots import SlotTable


def test_row_zero_is_never_dealt_out() -> None:
    table = SlotTable(3)
    assert sorted(table.assign(i, busy=()) for i in (7, 8, 9)) == [1, 2, 3]


def test_the_oldest_idle_loadout_loses_its_slot() -> None:
    table = SlotTable(2)
    first, second = table.assign(1, busy=()), table.assign(2, busy=())
    assert table.row(1) == first
    assert table.assign(3, busy={1, 3}) == second
    assert table.row(2) is None


def test_a_busy_loadout_keeps_its_slot() -> None:
    table = SlotTable(2)
    first = table.assign(1, busy=())
    table.assign(2, busy=())
    table.assign(3, busy={1, 3})
    assert table.row(1) == first


def test_a_released_slot_is_dealt_out_again() -> None:
    table = SlotTable(1)
    row = table.assign(1, busy=())
    assert table.release(1) == row
    assert table.release(1) is None
    assert table.assign(2, busy=()) == row


def test_who_loses_a_slot_is_told() -> None:
    table = SlotTable(2)
    assert table.make_room(busy=()) is None
    table.assign(1, busy=())
    table.assign(2, busy=())
    assert table.make_room(busy={1}) == 2
    assert table.make_room(busy=()) is None
    assert list(table) == [1]
