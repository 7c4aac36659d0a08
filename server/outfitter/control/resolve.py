"""From what a request asks for to what the engine is told: pure decisions, no I/O."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from outfitter.control.fields import TASK_VECTORS
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

MAX_DEPTH = 64
"""How deep objects and lists of a body may be nested; a tool's JSON schema needs a dozen."""


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
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _is_deeper(body, MAX_DEPTH):
        message = f"the body is nested too deeply: at most {MAX_DEPTH} levels are read"
        raise ApiError(400, message, "invalid_json")
    return body


def model_of(body: Mapping[str, object], example: str) -> str:
    """The model that the request names; raises ApiError (400) where that is no string.

    example: one that exists.
    """
    asked = body.get("model")
    if not isinstance(asked, str):
        message = f"model must be a string: use {example!r}"
        raise ApiError(400, message, "missing_model" if asked is None else None, "model")
    return asked


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


def _is_deeper(body: object, depth: int) -> bool:
    """Whether objects and lists are nested deeper; one level at a time, without recursion."""
    level: list[Any] = [body]
    for _ in range(depth):
        children = (one.values() if isinstance(one, dict) else one for one in level)
        level = [x for some in children for x in some if isinstance(x, dict | list)]
        if not level:
            return False
    return True


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields: dict[str, object] = {}
    for key, value in pairs:
        if key in fields:
            raise ValueError(f"the key {key[:200]!r} occurs twice in one object")
        fields[key] = value
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
