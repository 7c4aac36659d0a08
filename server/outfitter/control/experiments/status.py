"""Where an experiment stands, and what may be done to it then. Pure."""

from collections.abc import Mapping
from enum import StrEnum

from outfitter.errors import ApiError


class Status(StrEnum):
    """A draft serves nobody; those that do not run any more serve everybody the same."""

    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    ROLLED_BACK = "rolled_back"
    SHIPPED = "shipped"

    @property
    def is_over(self) -> bool:
        """Whether it never runs again."""
        return self in (Status.STOPPED, Status.ROLLED_BACK, Status.SHIPPED)


START, PAUSE, STOP, SHIP, ROLLBACK = "start", "pause", "stop", "ship", "rollback"
_DRAFT, _RUNNING, _PAUSED, _STOPPED = list(Status)[:4]
_RULES: Mapping[str, tuple[tuple[Status, ...], Status]] = {
    START: ((_DRAFT, _PAUSED), Status.RUNNING),
    PAUSE: ((_RUNNING,), Status.PAUSED),
    STOP: ((_RUNNING, _PAUSED), Status.STOPPED),
    SHIP: ((_RUNNING, _PAUSED, _STOPPED), Status.SHIPPED),
    ROLLBACK: ((_RUNNING, _PAUSED), Status.ROLLED_BACK),
}


def after(status: Status, action: str) -> Status:
    """Where an action leads. Raises ApiError (409) where it cannot be done."""
    before, then = _RULES[action]
    if status not in before:
        allowed = " or ".join(before)
        message = f"cannot {action} an experiment that is {status}; only one that is {allowed}"
        raise ApiError(409, message, "experiment_status")
    return then
