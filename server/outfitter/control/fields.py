"""Which top-level fields a request may have. Pure."""

from collections.abc import Mapping

# Fields of OpenAI's API that the engine may not know; stock clients send them.
_SHARED = """
frequency_penalty logit_bias logprobs max_tokens model n presence_penalty seed stop stream
stream_options temperature top_p user
"""
_CHAT = """
audio function_call functions max_completion_tokens messages metadata modalities
parallel_tool_calls prediction prompt_cache_key prompt_cache_retention reasoning_effort
response_format safety_identifier service_tier store tool_choice tools top_logprobs
verbosity web_search_options
"""
_COMPLETION = """
best_of echo prompt suffix
"""
OPENAI_FIELDS: Mapping[str, frozenset[str]] = {
    "ChatCompletionRequest": frozenset((_SHARED + _CHAT).split()),
    "CompletionRequest": frozenset((_SHARED + _COMPLETION).split()),
}


def known_fields(openapi: Mapping[str, object], schema: str) -> frozenset[str] | None:
    """The fields of `schema` in the engine's OpenAPI document and in OpenAI's API.

    None when the document does not describe the schema: then nobody can tell.
    """
    fields: object = openapi
    for key in ("components", "schemas", schema, "properties"):
        fields = fields.get(key) if isinstance(fields, Mapping) else None
    if not isinstance(fields, Mapping) or not fields:
        return None
    return frozenset(str(name) for name in fields) | OPENAI_FIELDS[schema]
