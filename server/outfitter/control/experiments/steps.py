"""From one version of an experiment to the next. Pure; each raises ApiError (409) where it cannot.

now: Unix time, seconds.
"""

from collections.abc import Mapping
from dataclasses import replace

from outfitter.control.experiments.experiment import Experiment, Pin
from outfitter.control.experiments.status import PAUSE, ROLLBACK, SHIP, START, STOP, after
from outfitter.errors import ApiError


def started(experiment: Experiment, pins: Mapping[str, Pin], now: int) -> Experiment:
    """Running. One that was started before goes on with what its variants were then."""
    status = after(experiment.status, START)
    if experiment.started is not None:
        return replace(experiment, status=status)
    return replace(experiment, status=status, pins=dict(pins), started=now, stepped=now)


def paused(experiment: Experiment) -> Experiment:
    """Everybody gets the control, and nothing is counted, until it goes on."""
    return replace(experiment, status=after(experiment.status, PAUSE), pending=None)


def stopped(experiment: Experiment) -> Experiment:
    """Everybody gets the control, for good."""
    return replace(experiment, status=after(experiment.status, STOP), pending=None)


def rolled_back(experiment: Experiment) -> Experiment:
    """The same, because of a guardrail."""
    return replace(experiment, status=after(experiment.status, ROLLBACK), pending=None)


def shipped(experiment: Experiment, winner: str) -> Experiment:
    """Everybody gets the winner. Raises ApiError (400) for a variant that is none, or a shadow."""
    status = after(experiment.status, SHIP)
    if winner not in experiment.definition.shares:
        known = ", ".join(experiment.definition.shares)
        message = f"variant must be one that serves: {known}, not {winner[:80]!r}"
        raise ApiError(400, message, "invalid_parameter", "variant")
    return replace(experiment, status=status, winner=winner, pending=None)


def advanced(experiment: Experiment, step: int, now: int) -> Experiment:
    """At another step of the ramp."""
    if step == experiment.step:
        return experiment
    return replace(experiment, step=step, stepped=now, pending=None)
