"""Experiments as the API shows them. Pure."""

from typing import Any

from outfitter.control.experiments.experiment import PREFIX, Experiment, Pending
from outfitter.control.saved import OWNER


def describe(experiment: Experiment) -> dict[str, Any]:
    """An experiment: what was said of it, and what became of it. Times: Unix, seconds."""
    allotment, pending = experiment.allotment, experiment.pending
    return {
        "id": experiment.id,
        "object": "experiment",
        "model": PREFIX + experiment.name,
        "version": experiment.version,
        "status": str(experiment.status),
        **experiment.definition.to_json(),
        "step": experiment.step,
        "coverage_now": experiment.coverage if experiment.is_running else 0.0,
        "buckets": {} if allotment is None else allotment.counts,
        "resolved": {key: _pin(experiment, key) for key in experiment.pins},
        "winner": experiment.winner,
        "pending": None if pending is None else _pending(pending),
        "forbidden": list(experiment.forbidden),
        "created_at": experiment.created,
        "started_at": experiment.started,
        "step_since": experiment.stepped,
    }


def describe_version(experiment: Experiment) -> dict[str, Any]:
    """The same with who made it so, for whoever may change it."""
    made = experiment.made
    return {
        **describe(experiment),
        "action": made.action,
        "at": made.at,
        "by": {"tenant": made.tenant, "key": made.key},
        "figures": dict(made.figures),
    }


def describe_model(experiment: Experiment, base: str) -> dict[str, Any]:
    """An experiment as `GET /v1/models` shows it. base: the name of the base."""
    namespace, slash, _ = experiment.name.partition("/")
    return {
        "id": PREFIX + experiment.name,
        "object": "model",
        "created": experiment.created,
        "owned_by": namespace if slash else OWNER,
        "root": base,
        "parent": base,
        "version": experiment.version,
        "experiment": {
            "status": str(experiment.status),
            "variants": list(experiment.definition.shares),
        },
    }


def _pending(pending: Pending) -> dict[str, Any]:
    """Without its figures: results are for whoever may change it."""
    return {key: value for key, value in pending.to_json().items() if key != "figures"}


def _pin(experiment: Experiment, key: str) -> dict[str, Any]:
    pin = experiment.pins[key]
    return {"model": pin.model, "loadout": pin.plan.label}
