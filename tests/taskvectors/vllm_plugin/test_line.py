"""The line for room: in turn by tenant, bounded, and no place is lost."""

from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskvectors.errors import PoolBusy
from taskvectors.vllm_plugin.line import Line, Waiter
from taskvectors.vllm_plugin.tenant import Tenant


def waiter(tag: str, since: float = 0.0) -> Waiter:
    return Waiter({}, since, Mock(), Tenant(tag))


def order_of(line: Line) -> str:
    """Tags in the order in which all would be served."""
    order = ""
    while len(line):
        turn = line.heads()[0]
        order += turn.tenant.tag
        line.served(turn)
    return order


def test_tenants_alternate_however_many_wait() -> None:
    """And each one's requests keep their order."""
    line = Line(99)
    turns = [waiter(tag) for tag in "aaaabbc"]
    for turn in turns:
        line.join(turn)
    assert line.heads() == [turns[0], turns[4], turns[6]]
    assert order_of(line) == "abcabaa"


def test_one_tenant_is_served_in_the_order_of_arrival() -> None:
    """As in any line."""
    line = Line(99)
    turns = [waiter("") for _ in range(4)]
    for turn in turns:
        line.join(turn)
    for turn in turns:
        assert line.heads() == [turn]
        line.served(turn)


def test_a_full_line_makes_room_for_who_has_less_of_it() -> None:
    """The newest of the tenant with most leaves; who has most is told to come back."""
    line = Line(4)
    turns = [waiter("a") for _ in range(4)]
    assert [line.join(turn) for turn in turns] == [None] * 4
    with pytest.raises(PoolBusy, match="4 requests wait for room in the pool"):
        line.join(waiter("a"))
    assert [line.join(waiter("b")) for _ in range(2)] == [turns[3], turns[2]]
    with pytest.raises(PoolBusy):
        line.join(waiter("b"))
    assert order_of(line) == "abab"


def test_no_line_at_all_can_be_had() -> None:
    """Then nobody waits."""
    with pytest.raises(PoolBusy, match="0 requests wait"):
        Line(0).join(waiter("a"))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60))
def test_numbers_add_up(steps: list) -> None:
    """Whoever joins, leaves or is served."""
    line, there = Line(8), []
    for number, (tag, joins) in enumerate(steps):
        if joins:
            turn = waiter(tag, number)
            try:
                pushed = line.join(turn)
            except PoolBusy:
                continue
            there = [*(t for t in there if t is not pushed), turn]
        elif there:
            gone = there.pop(number % len(there))
            line.leave(gone)
            line.leave(gone)
        assert len(line) == len(there) <= 8
        assert line.num_tenants == len({turn.tenant.tag for turn in there})
        assert line.oldest is (min(there, key=lambda turn: turn.since) if there else None)
    assert len(order_of(line)) == len(there)
