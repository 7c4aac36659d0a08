"""What may be changed of an experiment, and when. Pure."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from outfitter.control.experiments.definition import FIELDS, Definition
from outfitter.control.experiments.experiment import Experiment
from outfitter.control.experiments.reading import MAX_NAME, Fields
from outfitter.control.experiments.status import Status
from outfitter.errors import ApiError

WEIGHTS = "weights"
_FIXED = ("control", "unit", "layer", "holdout", "primary", "alpha", "allocation")
"""A change of these would make of what was measured something that nobody decided before."""
_WHEN_OVER = ("hypothesis",)


def edited(experiment: Experiment, changes: Mapping[str, object], now: int) -> Experiment:
    """With what the body of a PATCH says; `weights` names variants only. now: Unix time, seconds.

    A step of the ramp whose coverage is another one begins anew. Raises ApiError: 400 for what
    cannot be, 409 for what cannot be any more.
    """
    given = Fields(changes, "", (*FIELDS, WEIGHTS)).given
    old = experiment.definition
    new = old.changed({key: value for key, value in given.items() if key != WEIGHTS})
    if (weights := given.get(WEIGHTS)) is not None:
        new = _weighted(new, weights)
    if experiment.status is not Status.DRAFT:
        _check_changes(experiment, new)
    step = min(experiment.step, max(len(new.ramp) - 1, 0))
    if experiment.stepped is not None and _step(new, step) != _step(old, experiment.step):
        experiment = replace(experiment, stepped=now)
    return replace(experiment, definition=new, step=step)


def _step(definition: Definition, step: int) -> float | None:
    """The coverage of a step; None without a ramp."""
    return definition.ramp[step].coverage if definition.ramp else None


def _weighted(definition: Definition, weights: object) -> Definition:
    keys = [variant.key for variant in definition.variants if not variant.is_shadow]
    fields = Fields(weights, WEIGHTS, keys)
    own = {key: fields.number(key, 0, 1e6) for key in fields.given}
    return Definition.parse(definition.weighted(own).to_json())


def _check_changes(experiment: Experiment, new: Definition) -> None:
    """Raise ApiError (409) for a field that stays as it was when the experiment started."""
    old, status = experiment.definition, experiment.status
    told, then = old.to_json(), new.to_json()
    changed = [name for name in FIELDS if told[name] != then[name]]
    for name in changed:
        if name in _FIXED or (status.is_over and name not in _WHEN_OVER):
            raise _too_late(name, status)
    mixes, new_mixes = _mixes(old), _mixes(new)
    if mixes != new_mixes:
        where = next(key for key in {**mixes, **new_mixes} if mixes.get(key) != new_mixes.get(key))
        raise _too_late(f"the variant {where[:MAX_NAME]!r}", status, "variants")
    if old.primary is not None:
        parts = (old.primary, old.measured[old.primary].denominator)
        for part in filter(None, parts):
            if old.measured[part] != new.measured.get(part):
                raise _too_late(f"the metric {part!r}", status, "metrics")


def _mixes(definition: Definition) -> dict[str, Any]:
    """What each variant is, and whether it serves; how often is another matter."""
    return {one.key: (one.model, one.task_vectors, one.is_shadow) for one in definition.variants}


def _too_late(what: str, status: Status, param: str | None = None) -> ApiError:
    message = (
        f"{what} cannot be changed of an experiment that is {status}: what was measured would mean"
        " something else; define another experiment"
    )
    return ApiError(409, message, "experiment_status", param or what)
