"""What an experiment does by itself, once the figures say so and nobody forbids it. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from outfitter.control.experiments.decide import (
    GUARDRAIL_BREACHED,
    RAMP_STEP_PASSED,
    SAMPLE_RATIO_MISMATCH,
    WINNER,
    Finding,
    is_ramped,
    live,
)
from outfitter.control.experiments.definition import THOMPSON
from outfitter.control.experiments.experiment import Experiment, Pending
from outfitter.control.experiments.parts import OFF
from outfitter.control.experiments.report import Report
from outfitter.control.experiments.status import ROLLBACK, SHIP
from outfitter.control.experiments.steps import advanced, rolled_back
from outfitter.statistics import thompson

DROP, RAMP, WEIGHTS = "drop", "ramp", "weights"
KINDS = (ROLLBACK, DROP, RAMP, SHIP, WEIGHTS)
LEAST_MOVE = 0.05
"""Weights follow the results (Thompson sampling) once one of them is to move so far."""
WEIGHTS_EVERY_S = 600.0
"""And not more often, so that each version has units to be judged by."""


@dataclass(frozen=True)
class Act:
    """kind: one of KINDS. reason, figures: of the finding that causes it.

    rollback: to the control, for good. drop: one variant of several loses its traffic. ramp: to the
    next step. ship: the winner. weights: as `weights` says.
    """

    kind: str
    reason: str
    variant: str | None = None
    step: int | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What a veto names: `rollback:warm`, `ramp:2`, `weights`."""
        own = self.variant if self.variant is not None else self.step
        return self.kind if own is None else f"{self.kind}:{own}"

    @property
    def cause(self) -> dict[str, Any]:
        """As it is written down with the version and in the trail."""
        return {"act": self.key, "reason": self.reason, **self.figures}


def wanted(experiment: Experiment, report: Report, found: Sequence[Finding]) -> Act | None:
    """The act that the findings call for first; None where there is none, or it is forbidden."""
    if not experiment.is_running:
        return None
    for finding in found:
        act = _of(experiment, report, finding)
        if act is not None and not is_forbidden(experiment, act):
            return act
        if finding.kind == SAMPLE_RATIO_MISMATCH:
            return None  # nothing is built on figures that do not count
    act = _reweighted(experiment, report)
    return None if act is None or is_forbidden(experiment, act) else act


def is_forbidden(experiment: Experiment, act: Act) -> bool:
    """Whether a veto stands against it: this one, or all of its kind."""
    return act.kind in experiment.forbidden or act.key in experiment.forbidden


def applied(experiment: Experiment, act: Act, now: int) -> Experiment:
    """What it becomes by an act; not by `ship`, which does more. Raises ApiError (409)."""
    if act.kind == ROLLBACK:
        return rolled_back(experiment)
    if act.kind == RAMP:
        assert act.step is not None
        return advanced(experiment, act.step, now)
    weights = {str(act.variant): 0.0} if act.kind == DROP else act.weights
    return replace(experiment, definition=experiment.definition.weighted(weights), pending=None)


def proposed(experiment: Experiment, act: Act, now: float) -> Experiment:
    """With the act announced: it comes when `automatic.veto_s` is over."""
    due = now + experiment.definition.automatic.veto_s
    return replace(experiment, pending=Pending(act.key, due, act.cause, act.variant))


def withdrawn(experiment: Experiment) -> Experiment:
    """Without what was announced."""
    return replace(experiment, pending=None)


def vetoed(experiment: Experiment, act: str) -> Experiment:
    """With a kind of act, or one act (`ramp:2`), forbidden; it is not pending any more."""
    pending = experiment.pending
    is_hit = pending is not None and act in (pending.act, pending.act.partition(":")[0])
    forbidden = tuple(sorted({*experiment.forbidden, act}))
    return replace(experiment, forbidden=forbidden, pending=None if is_hit else pending)


def allowed(experiment: Experiment, act: str) -> Experiment:
    """Without a veto."""
    return replace(experiment, forbidden=tuple(one for one in experiment.forbidden if one != act))


class Move(StrEnum):
    """What is done about an act now."""

    APPLY = "apply"
    PROPOSE = "propose"
    """It waits for a veto."""
    WITHDRAW = "withdraw"
    """What waits is not called for any more."""
    WAIT = "wait"


def next_move(experiment: Experiment, act: Act | None, now: float) -> Move:
    """What to do, where `act` is what the figures call for. now: Unix time, seconds."""
    pending = experiment.pending
    if act is None:
        return Move.WAIT if pending is None else Move.WITHDRAW
    if act.kind == WEIGHTS or not experiment.definition.automatic.veto_s:
        return Move.APPLY
    if pending is None or pending.act != act.key:
        return Move.PROPOSE
    return Move.APPLY if now >= pending.due else Move.WAIT


def _of(experiment: Experiment, report: Report, finding: Finding) -> Act | None:
    automatic = experiment.definition.automatic
    cause: dict[str, Any] = {
        "reason": finding.reason,
        "figures": {"finding": finding.to_json()},
    }
    if finding.kind == GUARDRAIL_BREACHED and automatic.rollback:
        kind = DROP if len(live(report)) > 1 else ROLLBACK
        return Act(kind, variant=finding.variant, **cause)
    if finding.kind == RAMP_STEP_PASSED and automatic.ramp:
        return Act(RAMP, step=experiment.step + 1, **cause)
    if finding.kind == WINNER and automatic.ship != OFF and is_ramped(report):
        return Act(SHIP, variant=finding.variant, **cause)
    return None


def _reweighted(experiment: Experiment, report: Report) -> Act | None:
    """By Thompson sampling over the primary metric; the seed is the version, so that two agree."""
    definition, primary = experiment.definition, experiment.definition.primary
    if definition.allocation != THOMPSON or primary is None:
        return None
    since = max(experiment.stepped or 0, experiment.made.at)
    if report.standing.now - since < WEIGHTS_EVERY_S:
        return None
    shares = {key: share for key, share in definition.shares.items() if share > 0}
    arms = {key: report.estimates.get(primary, {}).get(key) for key in shares}
    known = {key: one for key, one in arms.items() if one is not None and one.variance > 0}
    if len(known) < len(shares) or len(shares) < 2:
        return None
    is_up = definition.measured[primary].is_better_up
    chance = thompson.chances(known, is_better_up=is_up, seed=experiment.version)
    weights = thompson.weights(chance)
    if max(abs(weights[key] - shares[key]) for key in shares) < LEAST_MOVE:
        return None
    shown = ", ".join(f"{key} {value:.0%}" for key, value in weights.items())
    reason = f"traffic follows the chance to be best on {primary}: {shown}"
    figures = {"chances": chance, "before": shares, "weights": weights}
    return Act(WEIGHTS, reason, weights=weights, figures=figures)
