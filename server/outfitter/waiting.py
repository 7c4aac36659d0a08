"""Asking without waiting: in the event loop memory may answer, and a thread asks what it cannot."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

_IS_AT_ONCE: ContextVar[bool] = ContextVar("is_at_once", default=False)


class WouldWait(Exception):
    """What was asked is not in memory."""


def at_once(decide: Callable[[], T]) -> T:
    """What `decide` returns; raises WouldWait where it would ask a database, or take long."""
    token = _IS_AT_ONCE.set(True)
    try:
        return decide()
    finally:
        _IS_AT_ONCE.reset(token)


def check_may_wait() -> None:
    """To be called before anything slow; raises WouldWait for whoever must not wait."""
    if _IS_AT_ONCE.get():
        raise WouldWait
