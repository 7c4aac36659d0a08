"""What is asked at once is answered from memory, or not at all."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest

from outfitter.control.selection import Modules
from outfitter.waiting import WouldWait, at_once, check_may_wait
from taskvectors.selection import Selection


def slow() -> int:
    check_may_wait()
    return 1


def test_what_may_wait_waits() -> None:
    """Outside of at_once nothing is refused, before or after."""
    assert slow() == 1
    with pytest.raises(WouldWait):
        at_once(slow)
    assert slow() == 1


def test_what_need_not_wait_is_answered() -> None:
    """And its errors are its own."""
    assert at_once(lambda: 2) == 2
    with pytest.raises(ZeroDivisionError):
        at_once(lambda: 1 // 0)
    assert slow() == 1


def test_a_thread_may_wait() -> None:
    """Whoever was refused asks again in a thread, in the same context."""

    async def ask() -> int:
        try:
            return at_once(slow)
        except WouldWait:
            loop = asyncio.get_running_loop()
            with ThreadPoolExecutor(1) as threads:
                return await loop.run_in_executor(threads, copy_context().run, slow)

    assert asyncio.run(ask()) == 1


def test_a_selection_is_looked_up_once_and_then_known() -> None:
    """Many modules take long; what was found is remembered."""
    modules = Modules(["model.layers.0.mlp.up_proj.weight"])
    selection = Selection(modules=(("mlp.*", 1.0),))
    with pytest.raises(WouldWait):
        at_once(lambda: modules.problem(selection))
    assert modules.problem(selection) is None
    assert at_once(lambda: modules.problem(selection)) is None
