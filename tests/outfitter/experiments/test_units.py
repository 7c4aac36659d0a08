"""Whom a request is for: by its user, a header, or the key."""

import pytest

from outfitter.control.experiments.parts import Unit
from outfitter.control.experiments.units import MAX_LENGTH, unit_of
from outfitter.control.principal import OPEN, Principal
from outfitter.errors import ApiError

KEY = Principal("acme", "ofk_abc", frozenset())
USER = Unit("user")
BY_HEADER = Unit("header", "x-user-id")


@pytest.mark.parametrize(
    ("body", "unit"),
    [
        ({"user": "alice"}, "alice"),
        ({"user": "alice", "safety_identifier": "other"}, "alice"),
        ({"safety_identifier": "alice"}, "alice"),
        ({"metadata": {"user_id": "alice"}}, "alice"),
        ({"user": "", "metadata": {"user_id": "alice"}}, "alice"),
        ({"user": 7}, None),
        ({"user": None, "metadata": "alice"}, None),
        ({"metadata": {"user_id": {}}}, None),
        ({}, None),
    ],
)
def test_a_user_is_named_as_any_of_the_apis_does(body: dict, unit: str | None) -> None:
    """OpenAI's `user`, its successor, and Anthropic's metadata; what is no text names nobody."""
    assert unit_of(USER, body, {"x-user-id": "bob"}, KEY) == unit


@pytest.mark.parametrize(
    ("headers", "unit"),
    [
        ({"x-user-id": "bob"}, "bob"),
        ({"x-user-id": ""}, None),
        ({}, None),
        ({"x-user-id": "é".encode().decode("latin-1")}, "é"),
        ({"x-user-id": "é"}, "é"),
    ],
)
def test_a_header_names_one(headers: dict, unit: str | None) -> None:
    """In UTF-8 or in Latin-1."""
    assert unit_of(BY_HEADER, {"user": "alice"}, headers, KEY) == unit


def test_a_key_is_one() -> None:
    """By its visible prefix; a gateway without keys names nobody by them."""
    assert unit_of(Unit("key"), {"user": "alice"}, {}, KEY) == "ofk_abc"
    assert unit_of(Unit("key"), {"user": "alice"}, {}, OPEN) is None


def test_an_endless_name_is_refused() -> None:
    """Each character is hashed while others wait; the error names the field."""
    assert unit_of(USER, {"user": "x" * MAX_LENGTH}, {}, KEY) == "x" * MAX_LENGTH
    long = "x" * (MAX_LENGTH + 1)
    for unit, body, headers, param in (
        (USER, {"user": long}, {}, "user"),
        (USER, {"metadata": {"user_id": long}}, {}, "metadata.user_id"),
        (BY_HEADER, {}, {"x-user-id": long}, "x-user-id"),
    ):
        with pytest.raises(ApiError, match=f"{param} has 1025 characters") as caught:
            unit_of(unit, body, headers, KEY)
        assert (caught.value.status, caught.value.param) == (400, param)
