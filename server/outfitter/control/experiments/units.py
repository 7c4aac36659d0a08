"""Who a request is for, as an experiment sees it: the unit that is assigned. Pure."""

from collections.abc import Mapping

from outfitter.control.experiments.parts import Unit
from outfitter.control.principal import Principal
from outfitter.errors import ApiError

MAX_LENGTH = 1024
"""Characters of a unit: each is hashed, in the event loop."""


def unit_of(
    unit: Unit, body: Mapping[str, object], headers: Mapping[str, str], principal: Principal
) -> str | None:
    """The unit of a request; None where it names nobody.

    By user: the body's `user`, else its `safety_identifier`, else `metadata.user_id`, where
    Anthropic's API has it. By key: the visible prefix of the API key. Raises ApiError (400) for one
    of more than MAX_LENGTH characters.
    """
    if unit.by == "key":
        return principal.key
    if unit.by == "header":
        return _checked(_text(headers.get(str(unit.header))), str(unit.header))
    metadata = body.get("metadata")
    named = metadata.get("user_id") if isinstance(metadata, Mapping) else None
    given = {name: body.get(name) for name in ("user", "safety_identifier")}
    for name, value in {**given, "metadata.user_id": named}.items():
        if isinstance(value, str) and value:
            return _checked(value, name)
    return None


def _text(value: str | None) -> str | None:
    """A header as it was meant: in UTF-8 where it is, else in Latin-1."""
    if not value:
        return None
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def _checked(value: str | None, param: str) -> str | None:
    if value is not None and len(value) > MAX_LENGTH:
        message = (
            f"{param} has {len(value)} characters; one that experiments assign by has at most"
            f" {MAX_LENGTH}"
        )
        raise ApiError(400, message, "invalid_parameter", param)
    return value
