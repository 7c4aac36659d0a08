"""Which fields a request may have: what nobody would read is an error, not silence. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from outfitter.errors import ApiError

TASK_VECTORS = "task_vectors"

# Fields of OpenAI's API that the engine may not know; stock clients send them.
_SAMPLING = """
frequency_penalty logit_bias logprobs max_tokens model n presence_penalty seed stop stream
stream_options temperature top_p user
"""
_HARMLESS = "metadata prompt_cache_key prompt_cache_retention safety_identifier service_tier store"
"""What the engine may not know either, and whose absence changes no answer."""
_CHAT = """
audio function_call functions max_completion_tokens messages modalities parallel_tool_calls
prediction reasoning_effort response_format tool_choice tools top_logprobs verbosity
web_search_options
"""
_COMPLETION = "best_of echo prompt suffix"
_RESPONSE = "background conversation input previous_response_id prompt stream_options"
OPENAI_FIELDS: Mapping[str, frozenset[str]] = {
    "/v1/chat/completions": frozenset((_SAMPLING + _CHAT + _HARMLESS).split()),
    "/v1/completions": frozenset((_SAMPLING + _COMPLETION).split()),
    "/v1/responses": frozenset((_RESPONSE + " " + _HARMLESS).split()),
    "/v1/embeddings": frozenset({"user"}),
    "/v1/messages": frozenset({"metadata", "service_tier"}),
}
NESTED: Mapping[str, frozenset[str]] = {
    "stream_options": frozenset({"include_usage", "include_obfuscation"}),
}
"""Objects in a request that are looked into, with OpenAI's fields of each."""


@dataclass(frozen=True)
class Refusal:
    """Why a field is not relayed. neutral: values that ask for nothing, beside null."""

    reason: str
    neutral: tuple[object, ...] = ()


_ENGINE = "it steers the engine itself, which is the operator's"
_STATEFUL = "responses are not stored here: send the whole conversation as input"
REFUSED: Mapping[str, Refusal] = {
    "kv_transfer_params": Refusal(_ENGINE),
    "ec_transfer_params": Refusal(_ENGINE),
    "vllm_xargs": Refusal(_ENGINE),
    "mm_payload": Refusal(_ENGINE, ("tensors", "none")),
    "request_id": Refusal("name a request by the header x-request-id"),
    "priority": Refusal("all requests of a server are equal", (0,)),
    "previous_response_id": Refusal(_STATEFUL),
    "conversation": Refusal(_STATEFUL),
    "previous_input_messages": Refusal(_STATEFUL),
    "background": Refusal(_STATEFUL, (False,)),
    "audio": Refusal("the served model does not speak"),
    "modalities": Refusal("the served model writes text only", (["text"], [])),
    "prediction": Refusal("predicted outputs are not supported"),
    "web_search_options": Refusal("the server does not search the web"),
    "functions": Refusal("use tools"),
    "function_call": Refusal("use tool_choice", ("none", "auto")),
    "verbosity": Refusal("the served model has no such setting", ("medium",)),
    "best_of": Refusal("use n, and choose", (1,)),
}
"""Fields whose being ignored would change the answer, or that are not a client's business."""


@dataclass(frozen=True)
class Known:
    """The fields of one route: at the top, and in the objects of NESTED."""

    top: frozenset[str]
    nested: Mapping[str, frozenset[str]]


def known_fields(openapi: Mapping[str, object], path: str) -> Known | None:
    """What the engine's OpenAPI document and OpenAI's API know of POST `path`.

    None when the document does not describe the route's body: then nobody can tell.
    """
    schema = _at(openapi, "paths", path, "post", "requestBody", "content")
    properties = _properties(openapi, _at(schema, "application/json", "schema"))
    if not properties:
        return None
    nested = {
        name: frozenset(_properties(openapi, properties.get(name))) | fields
        for name, fields in NESTED.items()
    }
    return Known(frozenset(properties) | OPENAI_FIELDS.get(path, frozenset()), nested)


def offered_paths(openapi: Mapping[str, object]) -> frozenset[str] | None:
    """The paths that the engine answers; None when the document does not say."""
    paths = openapi.get("paths")
    return frozenset(map(str, paths)) if isinstance(paths, Mapping) and paths else None


def check_fields(body: Mapping[str, object], known: Known | None) -> None:
    """Raise ApiError (400) for a field that nobody would read, or that is refused.

    known: None knows them all.
    """
    for name in body.keys() & REFUSED.keys():
        refusal, value = REFUSED[name], body[name]
        if value is not None and not _is_neutral(value, refusal):
            message = f"{name} is not supported: {refusal.reason}"
            raise ApiError(400, message, "unsupported_parameter", name)
    if known is None:
        return
    _check_known(body, known.top | {TASK_VECTORS}, "")
    for name, fields in known.nested.items():
        if isinstance(value := body.get(name), Mapping):
            _check_known(value, fields, f"{name}.")


def _is_neutral(value: object, refusal: Refusal) -> bool:
    return any(type(value) is type(one) and value == one for one in refusal.neutral)


def _check_known(given: Mapping[str, object], known: frozenset[str], where: str) -> None:
    if unknown := sorted(given.keys() - known):
        name = f"{where}{unknown[0][:200]}"
        message = f"unknown field {name!r}: neither OpenAI's API nor the engine has it"
        raise ApiError(400, message, "unknown_parameter", name)


def _at(fields: object, *keys: str) -> object:
    for key in keys:
        fields = fields.get(key) if isinstance(fields, Mapping) else None
    return fields


def _properties(openapi: Mapping[str, object], schema: object) -> dict[str, object]:
    """The properties of a schema, of what it refers to, and of each of its alternatives."""
    found: dict[str, object] = {}
    todo, seen = [schema], set[str]()
    while todo:
        one = todo.pop()
        if not isinstance(one, Mapping):
            continue
        found |= one["properties"] if isinstance(one.get("properties"), Mapping) else {}
        for key in ("anyOf", "oneOf", "allOf"):
            todo += one[key] if isinstance(one.get(key), list) else []
        reference = one.get("$ref")
        if isinstance(reference, str) and reference not in seen:
            seen.add(reference)
            todo.append(_at(openapi, *reference.removeprefix("#/").split("/")))
    return found
