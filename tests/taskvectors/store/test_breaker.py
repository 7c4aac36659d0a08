"""The breaker: a tier that is away is not asked, and the log says so once."""

import logging
import threading

import pytest

from taskvectors.errors import TierUnavailable, VectorNotFound
from taskvectors.store.breaker import Breaker


class Clock:
    """Time that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker("the tier", failures=3, away_s=10, clock=clock)


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(TierUnavailable, match="no answer"), breaker.calling():
            raise TierUnavailable("no answer")


def is_let_through(breaker: Breaker) -> bool:
    try:
        with breaker.calling():
            return True
    except TierUnavailable:
        return False


def test_calls_go_through_until_three_failed_in_a_row(breaker: Breaker) -> None:
    fail(breaker, 2)
    assert is_let_through(breaker)
    fail(breaker, 2)
    assert breaker.is_up
    fail(breaker)
    assert not breaker.is_up
    assert not is_let_through(breaker)


def test_a_file_that_is_not_there_is_an_answer(breaker: Breaker) -> None:
    fail(breaker, 2)
    with pytest.raises(VectorNotFound), breaker.calling():
        raise VectorNotFound("x")
    fail(breaker, 2)
    assert breaker.is_up


def test_another_error_says_nothing_about_the_tier(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 11
    with pytest.raises(ZeroDivisionError), breaker.calling():
        raise ZeroDivisionError
    assert not breaker.is_up
    assert is_let_through(breaker), "the probe's place is free again"


def test_one_probe_at_a_time_decides(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 9.9
    assert not is_let_through(breaker)
    clock.now = 10
    with breaker.calling():
        assert not is_let_through(breaker), "while the probe is out the others wait"
    assert breaker.is_up
    assert is_let_through(breaker)


def test_a_failed_probe_waits_as_long_again(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 10
    fail(breaker)
    clock.now = 19.9
    assert not is_let_through(breaker)
    clock.now = 20
    assert is_let_through(breaker)


def test_the_log_has_one_warning_each_way(
    breaker: Breaker, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    fail(breaker, 3)
    for clock.now in (5, 10, 15):
        if clock.now == 10:
            fail(breaker)
        assert not is_let_through(breaker)
    assert [record.message for record in caplog.records] == [
        "the tier is left alone until it answers again: no answer"
    ]
    caplog.clear()
    clock.now = 30
    assert is_let_through(breaker)
    assert is_let_through(breaker)
    assert [record.message for record in caplog.records] == ["the tier answers again"]


def test_slow_calls_do_not_wait_for_each_other(breaker: Breaker) -> None:
    """Many threads are inside at once, and those that fail late open it once."""
    together = threading.Barrier(8, timeout=10)
    outcomes: list[str] = []

    def call() -> None:
        try:
            with breaker.calling():
                together.wait()
                raise TierUnavailable("late")
        except TierUnavailable as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["late"] * 8
    assert not breaker.is_up
