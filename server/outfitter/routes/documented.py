"""Bodies of requests as the OpenAPI document says them, for routes that read their body themselves.

The engine's own document says more of what it is relayed; here is what the gateway looks at.
"""

from typing import Any

from outfitter.control.experiments.choice import FORCE_HEADER
from outfitter.control.fields import TASK_VECTORS
from outfitter.control.rights import Visibility
from outfitter.control.surface import Route
from outfitter.state.records import REQUEST_VECTORS

Schema = dict[str, Any]

WEIGHT: Schema = {"type": "number", "minimum": -16, "maximum": 16}
ENTRY: Schema = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "weight": WEIGHT,
        "layers": {"type": ["array", "object"]},
        "modules": {"type": ["array", "object"]},
    },
    "required": ["name"],
    "additionalProperties": False,
}
MAPPING: Schema = {"type": "object", "additionalProperties": WEIGHT, "maxProperties": 16}
LIST: Schema = {"type": "array", "items": ENTRY, "maxItems": 16}
MIX: Schema = {
    "anyOf": [
        MAPPING,
        LIST,
        {
            "type": "object",
            "properties": {"vectors": {"anyOf": [MAPPING, LIST]}, "method": {"type": "string"}},
            "required": ["vectors"],
        },
    ]
}
NAME: Schema = {"type": "string", "example": "acme/support-bot"}

TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
SAVED: Schema = {
    "name": NAME,
    TASK_VECTORS: MIX,
    "description": TEXT_OR_NULL,
    "request_vectors": {"enum": list(REQUEST_VECTORS)},
}
TEXTS: Schema = {"type": ["array", "null"], "items": {"type": "string"}}
DETAILS: Schema = {
    **dict.fromkeys(("license", "description", "card"), TEXT_OR_NULL),
    **dict.fromkeys(("languages", "labels"), TEXTS),
}
DRAFT: Schema = {
    "name": NAME,
    "tags": TEXTS,
    **DETAILS,
    "signature": {"type": ["string", "object", "null"]},
}
SECONDS: Schema = {"type": ["number", "null"], "minimum": 0}
ACCESS: Schema = {"visibility": {"enum": list(Visibility)}, "shared_with": TEXTS}
VERSION: Schema = {"version": {"type": "integer", "minimum": 1}}
_SHARE: Schema = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
_OBJECT: Schema = {"type": ["object", "null"]}
_OBJECTS: Schema = {"type": ["array", "null"], "items": {"type": "object"}}
_VARIANT: Schema = {
    "type": "object",
    "properties": {
        "key": {"type": "string"},
        "model": {"type": "string"},
        TASK_VECTORS: MIX,
        "weight": {"type": "number", "minimum": 0},
        "shadow": {"type": "number", "minimum": 0, "maximum": 1},
    },
    "required": ["key"],
}
EXPERIMENT: Schema = {
    "name": {"type": "string", "example": "acme/tone"},
    "hypothesis": TEXT_OR_NULL,
    "variants": {"type": "array", "items": _VARIANT, "minItems": 2, "maxItems": 16},
    "control": TEXT_OR_NULL,
    "coverage": _SHARE,
    **dict.fromkeys(("layer", "holdout", "unit", "automatic"), _OBJECT),
    "primary": TEXT_OR_NULL,
    **dict.fromkeys(("metrics", "guardrails", "ramp", "graders"), _OBJECTS),
    "alpha": _SHARE,
    "allocation": {"enum": ["fixed", "thompson"]},
}
_TEXT: Schema = {"type": ["string", "array", "object"]}
_FORCE: Schema = {
    "name": FORCE_HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "The variant that an experiment (`exp:…`) is to answer with, for testers.",
}
_INPUTS = ("messages", "prompt", "input", "query", "documents", "text_1", "text_2", "tokens")


def json_body(
    properties: Schema, *required: str, extra: bool = False, optional: bool = False
) -> Schema:
    """`openapi_extra` of a route. required: of the properties. extra: whether others may be.

    optional: whether there need be no body.
    """
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": extra}
    if required:
        schema["required"] = list(required)
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": not optional, "content": content}}


def file_body(kind: str, **others: Schema) -> Schema:
    """`openapi_extra` of a route that takes bytes. others: bodies of JSON that it takes, too."""
    content = {kind: {"schema": {"type": "string", "format": "binary"}}}
    for body in others.values():
        content |= body["requestBody"]["content"]
    return {"requestBody": {"content": content}}


def relayed_body(route: Route) -> Schema:
    """`openapi_extra` of a relayed route."""
    properties: Schema = {"model": {"type": "string"}}
    properties |= dict.fromkeys(_INPUTS, _TEXT)
    properties |= {"stream": {"type": ["boolean", "null"]}, "max_tokens": {"type": "integer"}}
    if not route.is_tokens:
        properties[TASK_VECTORS] = MIX
    required = ("model",) if route.needs_model else ()
    body = json_body(properties, *required, extra=True)
    return body if route.is_tokens else {**body, "parameters": [_FORCE]}
