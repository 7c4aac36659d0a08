"""Which fields a request may have is decided from the engine's own document."""

import pytest

from outfitter.control.fields import (
    NESTED,
    OPENAI_FIELDS,
    REFUSED,
    Known,
    check_fields,
    known_fields,
    offered_paths,
)
from outfitter.control.surface import ROUTES
from outfitter.errors import ApiError
from tests.outfitter.engine_document import document

CHAT = known_fields(document(), "/v1/chat/completions")


def code_of(body: dict[str, object], known: Known | None = CHAT) -> tuple[str | None, str | None]:
    """Code and parameter of the error, if there is one."""
    try:
        check_fields(body, known)
    except ApiError as error:
        return error.code, error.param
    return None, None


def test_what_the_engine_knows_passes() -> None:
    """Sampling, tools, structured outputs, usage in streams: nothing is taken away."""
    body = {
        **dict.fromkeys(("messages", "model", "n", "stop", "logprobs", "seed", "user", "top_k")),
        **dict.fromkeys(("tools", "tool_choice", "response_format", "structured_outputs")),
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "task_vectors": {},
    }
    assert code_of(body) == (None, None)


@pytest.mark.parametrize("name", ["temprature", "max_token", "extra_body", "", "x" * 900])
def test_what_nobody_knows_is_refused_by_name(name: str) -> None:
    """A typo would change nothing, silently."""
    assert code_of({name: 1}) == ("unknown_parameter", name[:200])


def test_stream_options_are_looked_into() -> None:
    """The engine would not read the rest."""
    known = {"include_usage": True, "include_obfuscation": False}
    assert code_of({"stream_options": known}) == (None, None)
    wrong = {"stream_options": {"include_use": True}}
    assert code_of(wrong) == ("unknown_parameter", "stream_options.include_use")
    assert code_of({"stream_options": None}) == (None, None)


def test_what_changes_no_answer_passes() -> None:
    """Stock clients send it, and nothing of the answer depends on it."""
    harmless = ("store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key")
    assert code_of(dict.fromkeys(harmless, "x")) == (None, None)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_ignored_is_refused(name: str) -> None:
    """Unless its value asks for nothing."""
    assert code_of({name: {"some": "thing"}}, None) == ("unsupported_parameter", name)
    for value in (None, *REFUSED[name].neutral):
        assert code_of({name: value}, None) == (None, None)


@pytest.mark.parametrize(
    ("name", "value"), [("priority", False), ("background", 0), ("best_of", True)]
)
def test_a_neutral_value_has_its_type(name: str, value: object) -> None:
    """False is no zero."""
    assert code_of({name: value}, None) == ("unsupported_parameter", name)


@pytest.mark.parametrize("path", sorted(OPENAI_FIELDS.keys() & document()["paths"].keys()))
def test_every_route_of_a_text_model_is_described(path: str) -> None:
    """Each body has fields, so each is checked."""
    known = known_fields(document(), path)
    assert known is not None
    assert "model" in known.top
    assert code_of({"modle": 1}, known)[0] == "unknown_parameter"


def test_alternatives_are_added_up() -> None:
    """A text or messages may be tokenized."""
    known = known_fields(document(), "/tokenize")
    assert known is not None
    assert {"prompt", "messages", "tools", "add_special_tokens"} <= known.top


def test_a_schema_that_refers_to_itself_ends() -> None:
    """And one that refers to nothing has no fields."""
    loop = {"anyOf": [{"$ref": "#/components/schemas/A"}], "properties": {"a": {}}}
    body = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/A"}}}}
    openapi = {
        "paths": {"/x": {"post": {"requestBody": body}}},
        "components": {"schemas": {"A": loop}},
    }
    assert known_fields(openapi, "/x") == Known(frozenset("a"), dict(NESTED))
    assert known_fields({**openapi, "components": {}}, "/x") is None


@pytest.mark.parametrize("openapi", [{}, {"paths": 3}, {"paths": {"/v1/completions": {}}}])
def test_a_document_that_says_nothing_checks_nothing(openapi: dict[str, object]) -> None:
    """Then the engine has the last word."""
    assert known_fields(openapi, "/v1/completions") is None
    check_fields({"anything": 1}, None)


def test_offered_is_what_the_engine_has() -> None:
    """A text model generates, and embeds nothing."""
    offered = offered_paths(document())
    assert offered is not None
    ours = {route.target for route in ROUTES}
    assert ours & offered == {
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"),
        *("/v1/messages/count_tokens", "/tokenize", "/detokenize"),
    }
    assert offered_paths({}) is None
