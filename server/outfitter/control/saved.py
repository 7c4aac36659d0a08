"""Saved loadouts as models: what a request makes of one, and when it can be served. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from outfitter.control.experiments.experiment import Experiment
from outfitter.control.resolve import Plan, ResolvedVector
from outfitter.errors import ApiError
from outfitter.state.records import ADD, FORBID, REPLACE, SavedLoadout
from taskvectors.errors import BaseMismatch, InvalidLoadout, InvalidReference
from taskvectors.methods import LINEAR
from taskvectors.spec import Loadout, Reference

OWNER = "outfitter"
"""Who owns models without a namespace, the base among them."""


@dataclass(frozen=True)
class Asked:
    """A model that a request names: the base, a saved loadout or an experiment.

    name: as it was sent.
    """

    name: str
    saved: SavedLoadout | None = None
    experiment: Experiment | None = None

    @property
    def saved_model(self) -> str | None:
        """`acme/support-bot@3`; None for what is no saved loadout."""
        return None if self.saved is None else self.saved.id


def saved_reference(name: str) -> Reference | None:
    """The saved loadout that a model's name can mean: `name` or `name@3`; None for none."""
    try:
        reference = Reference.parse(name)
    except InvalidReference:
        return None
    is_named = reference.path is not None and not reference.digest and not reference.tag
    return reference if is_named else None


def model_not_found(name: str, base: str) -> ApiError:
    """404, the same for what does not exist and for what may not be seen. base: its name."""
    message = f"the model {name[:200]!r} does not exist; this server serves {base!r}"
    return ApiError(404, message, "model_not_found", "model")


def check_servable(
    saved: SavedLoadout, resolve: Callable[[Reference], ResolvedVector], base_fingerprint: str
) -> None:
    """Raise TaskVectorError unless every vector may still be served, on this very base."""
    vectors = [resolve(Reference(digest=digest)) for digest in sorted(saved.loadout.digests)]
    bases = {saved.terms.base_fingerprint, *(vector.base_fingerprint for vector in vectors)}
    if other := sorted(bases - {None, base_fingerprint}, key=str):
        raise BaseMismatch(
            f"the saved loadout {saved.id!r} belongs to the base {other[0]}, but this server serves"
            f" {base_fingerprint}"
        )


def check_allowed(saved: SavedLoadout) -> None:
    """Raise ApiError (400) where a request may not bring `task_vectors` of its own."""
    if saved.terms.request_vectors == FORBID:
        message = (
            f"the model {saved.id!r} takes no task_vectors: it is served as it was saved; leave"
            " them out, or save it with request_vectors 'replace' or 'add'"
        )
        raise ApiError(400, message, "task_vectors_forbidden", "task_vectors")


def apply(saved: SavedLoadout, requested: Plan) -> Plan:
    """What is served when `saved` is the model and the request has `task_vectors` or not.

    requested: the plan of the request's own vectors, with `task_vectors` None where it has none.
    Raises InvalidLoadout where they cannot be added.
    """
    if requested.task_vectors is None:
        return Plan(saved.loadout, _described(saved, saved.loadout, _vectors_of(saved)))
    if saved.terms.request_vectors == REPLACE:
        own = {**requested.task_vectors, "saved": _saved(saved), "request_vectors": REPLACE}
        return Plan(requested.loadout, own)
    both = _sum(saved, requested.loadout, str(requested.task_vectors["method"]))
    theirs = requested.task_vectors["vectors"]
    assert isinstance(theirs, list)
    described = _described(saved, both, [*_vectors_of(saved), *theirs])
    return Plan(both, {**described, "request_vectors": ADD})


def describe_model(saved: SavedLoadout, model: str, base: str) -> dict[str, object]:
    """A saved loadout as `GET /v1/models` shows it. model: what it is called there."""
    namespace, slash, _ = saved.name.partition("/")
    return {
        "id": model,
        "object": "model",
        "created": saved.created,
        "owned_by": namespace if slash else OWNER,
        "root": base,
        "parent": base,
        "version": saved.version,
        "loadout": f"sha256:{saved.digest}",
        "description": saved.terms.description,
        "request_vectors": saved.terms.request_vectors,
    }


def _sum(saved: SavedLoadout, other: Loadout, method: str) -> Loadout:
    """Both mixes added up; raises InvalidLoadout. method: that the request names."""
    for one in (saved.loadout.method, method):
        if one != LINEAR.name:
            raise InvalidLoadout(_not_linear(saved, one))
    both = Loadout.build([*saved.loadout.items, *other.items])
    return Loadout.from_canonical(both.canonical)  # within the bounds of one request


def _not_linear(saved: SavedLoadout, method: str) -> str:
    return (
        f"the model {saved.id!r} adds the request's vectors to its own, which needs the method"
        f" 'linear' on both sides, not {method!r}"
    )


def _described(saved: SavedLoadout, loadout: Loadout, vectors: list[object]) -> dict[str, object]:
    told = saved.terms.described or {}
    fields: dict[str, object] = {
        "loadout": "base" if loadout.is_base else f"sha256:{loadout.digest}",
        "method": loadout.method,
        "vectors": vectors,
    }
    if parameters := told.get("parameters") or dict(loadout.parameters):
        fields["parameters"] = parameters
    return {**fields, "saved": _saved(saved)}


def _vectors_of(saved: SavedLoadout) -> list[object]:
    """As they were when it was saved; without names where nobody wrote them down."""
    told = (saved.terms.described or {}).get("vectors")
    if isinstance(told, list):
        return list(told)
    return [
        {
            "name": None,
            "version": None,
            "digest": f"sha256:{item.digest}",
            "weight": item.weight,
            **item.selection.to_json(),
        }
        for item in saved.loadout.items
    ]


def _saved(saved: SavedLoadout) -> dict[str, object]:
    return {"name": saved.name, "version": saved.version}
