"""Which variant of an experiment serves a request, and what is said of that. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from outfitter.control.experiments.assign import Assignment, Reason, assign, kept_unit
from outfitter.control.experiments.experiment import PREFIX, Experiment
from outfitter.control.experiments.exposure import Exposure
from outfitter.control.experiments.status import Status
from outfitter.control.fields import TASK_VECTORS
from outfitter.control.principal import Principal, Scope
from outfitter.control.rights import check_scope
from outfitter.errors import ApiError

FORCE_HEADER = "x-outfitter-force-variant"


@dataclass(frozen=True)
class Choice:
    """The variant that serves one request. unit: as it was sent; None where nobody is named."""

    experiment: Experiment
    assignment: Assignment
    unit: str | None

    @property
    def variant(self) -> str:
        """Its key."""
        return self.assignment.variant

    @property
    def exposure(self) -> Exposure:
        """What is written down of it."""
        kept = None if self.unit is None else kept_unit(self.unit)
        own, is_counted = self.experiment, self.assignment.is_counted
        return Exposure(
            own.name,
            own.version,
            self.variant,
            kept,
            is_counted,
            is_before=self._is_before,
            graders=own.definition.graders,
        )

    @property
    def waiting(self) -> Exposure:
        """The same until the request gets its turn: one that never does counts for nothing."""
        return replace(self.exposure, is_counted=False, is_before=False)

    @property
    def described(self) -> dict[str, Any]:
        """The `experiment` object of the answer."""
        return {
            "name": self.experiment.name,
            "version": self.experiment.version,
            "variant": self.variant,
            "counted": self.assignment.is_counted,
            "reason": str(self.assignment.reason),
        }

    @property
    def _is_before(self) -> bool:
        """Whether a covariate wants to know of it; of a tester's, or in a holdout, none does."""
        if not any(metric.covariate for metric in self.experiment.definition.metrics):
            return False
        if self.assignment.reason is Reason.NOT_RUNNING:
            return self.experiment.status in (Status.DRAFT, Status.PAUSED)
        return self.assignment.reason is Reason.COVERAGE

    @property
    def shadows(self) -> Mapping[str, float]:
        """Variants that get a copy of a share of such requests: of those that count only."""
        if not self.assignment.is_counted:
            return {}
        return {one.key: one.shadow or 0.0 for one in self.experiment.definition.shadows}


def choose(experiment: Experiment, unit: str | None, forced: str | None = None) -> Choice:
    """The variant of a unit, or the one that a tester asks for.

    forced: its key, or None. Raises ApiError (400) for one that there is not.
    """
    if forced is not None:
        _check_variant(experiment, forced)
        return Choice(experiment, Assignment(forced, Reason.FORCED), unit)
    if not experiment.is_running:
        fallback = Assignment(experiment.fallback, Reason.NOT_RUNNING)
        return Choice(experiment, fallback, unit)
    return Choice(experiment, assign(experiment.split, unit), unit)


def forced_variant(headers: Mapping[str, str], principal: Principal) -> str | None:
    """The variant that a tester asks for. Raises ApiError (403) without the scope `publish`."""
    forced = headers.get(FORCE_HEADER)
    if forced is not None:
        check_scope(principal, (Scope.PUBLISH,))
    return forced


def check_not_forced(headers: Mapping[str, str], model: str, *, is_tokens: bool) -> None:
    """Raise ApiError (400) where a variant is asked for, and none would serve."""
    if (forced := headers.get(FORCE_HEADER)) is None:
        return
    wrong = f"{FORCE_HEADER} {forced[:80]!r}"
    message = f"{wrong} needs an experiment as the model, as '{PREFIX}tone', not {model[:200]!r}"
    if is_tokens:
        message = f"{wrong}: variants change no tokens; leave it out"
    raise ApiError(400, message, "invalid_parameter", FORCE_HEADER)


def check_no_vectors(body: Mapping[str, object], experiment: Experiment) -> None:
    """Raise ApiError (400) where a request brings `task_vectors` of its own."""
    if body.get(TASK_VECTORS) is not None:
        message = (
            f"the experiment {experiment.name!r} takes no task_vectors: its variants say which are"
            " served; leave them out"
        )
        raise ApiError(400, message, "task_vectors_forbidden", TASK_VECTORS)


def _check_variant(experiment: Experiment, key: str) -> None:
    keys = [variant.key for variant in experiment.definition.variants]
    if key not in keys:
        message = (
            f"the experiment {experiment.name!r} has no variant {key[:80]!r}; it has"
            f" {', '.join(keys)}"
        )
        raise ApiError(400, message, "invalid_parameter", FORCE_HEADER)
