"""From what a request asks for to what the engine is told: pure decisions, no I/O."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from outfitter.control.selection import Modules
from outfitter.errors import ApiError
from taskvectors.errors import BaseMismatch, InvalidLoadout
from taskvectors.methods import find_method
from taskvectors.spec import (
    Loadout,
    LoadoutItem,
    Reference,
    RequestedLoadout,
    RequestedVector,
    parse_task_vectors,
)

TASK_VECTORS = "task_vectors"


@dataclass(frozen=True)
class ResolvedVector:
    """What a reference stands for now."""

    name: str | None
    version: int | None
    digest: str
    base_fingerprint: str | None
    """The base that the file says it belongs to; None when it does not say."""


@dataclass(frozen=True)
class Plan:
    """A request, decided: the loadout to serve it with, and what the answer says of it."""

    loadout: Loadout
    task_vectors: dict[str, object] | None
    """The description for the answer's body; None when the request named no task vectors."""

    @property
    def label(self) -> str:
        """`sha256:<digest>`, or `base`."""
        return "base" if self.loadout.is_base else f"sha256:{self.loadout.digest}"


def parse_body(raw: bytes) -> dict[str, object]:
    """The JSON object of a request; raises ApiError (400)."""
    try:
        body = json.loads(raw, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", "invalid_json") from error
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object", "invalid_json")
    return body


def check_model(body: Mapping[str, object], served: Sequence[str]) -> str:
    """The model that the request names, one of `served`; raises ApiError for any other."""
    asked = body.get("model")
    if not isinstance(asked, str):
        message = f"model must be a string: use {served[0]!r}"
        raise ApiError(400, message, "missing_model" if asked is None else None, "model")
    if asked not in served:
        message = f"the model {asked[:200]!r} does not exist; this server serves {served[0]!r}"
        raise ApiError(404, message, "model_not_found", "model")
    return asked


def check_fields(body: Mapping[str, object], known: frozenset[str] | None) -> None:
    """Raise ApiError for a field that nobody would read; None knows them all."""
    if known is None:
        return
    if unknown := sorted(body.keys() - known - {TASK_VECTORS}):
        message = f"unknown field {unknown[0][:200]!r}: neither OpenAI's API nor the engine has it"
        raise ApiError(400, message, "unknown_parameter", unknown[0][:200])


def requested_loadout(body: Mapping[str, object]) -> RequestedLoadout | None:
    """The parsed `task_vectors` field; None when absent or null."""
    value = body.get(TASK_VECTORS)
    return None if value is None else parse_task_vectors(value)


def plan(
    requested: RequestedLoadout | None,
    resolve: Callable[[Reference], ResolvedVector],
    base_fingerprint: str,
    modules: Modules,
) -> Plan:
    """Resolve every reference once, and build the loadout; raises TaskVectorError.

    base_fingerprint, modules: of the base that is served.
    """
    if requested is None:
        return Plan(Loadout(()), None)
    find_method(requested.method).check_at_request()
    found = [(vector, resolve(vector.reference)) for vector in requested.vectors]
    for vector, resolved in found:
        _check_base(vector.reference, resolved, base_fingerprint)
        if problem := modules.problem(vector.selection):
            raise InvalidLoadout(f"task vector {str(vector.reference)!r}: {problem}")
    items = [LoadoutItem(r.digest, v.weight, v.selection) for v, r in found]
    parameters = _resolve_parameters(requested, resolve)
    loadout = Loadout.build(items, requested.method, parameters)
    fields: dict[str, object] = {
        "loadout": "base" if loadout.is_base else f"sha256:{loadout.digest}",
        "method": requested.method,
        "vectors": [_describe(vector, resolved) for vector, resolved in found],
    }
    if requested.parameters:
        fields["parameters"] = dict(requested.parameters)
    return Plan(loadout, fields)


def _resolve_parameters(
    requested: RequestedLoadout, resolve: Callable[[Reference], ResolvedVector]
) -> dict[str, object]:
    """The parameters as the engine is told them: a vector is named by its digest."""
    is_vector = find_method(requested.method).vector_parameters
    return {
        name: resolve(Reference.parse(str(value))).digest if name in is_vector and value else value
        for name, value in requested.parameters
    }


def _check_base(reference: Reference, resolved: ResolvedVector, fingerprint: str) -> None:
    if resolved.base_fingerprint not in (None, fingerprint):
        raise BaseMismatch(
            f"task vector {str(reference)!r} belongs to the base {resolved.base_fingerprint}, but"
            f" this server serves {fingerprint}"
        )


def _describe(vector: RequestedVector, resolved: ResolvedVector) -> dict[str, object]:
    return {
        "name": resolved.name,
        "version": resolved.version,
        "digest": f"sha256:{resolved.digest}",
        "weight": vector.weight,
        **vector.selection.to_json(),
    }


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields: dict[str, object] = {}
    for key, value in pairs:
        if key in fields:
            raise ValueError(f"the key {key[:200]!r} occurs twice in one object")
        fields[key] = value
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
