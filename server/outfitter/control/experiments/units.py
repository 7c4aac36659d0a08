"""Who a request is for, as an experiment sees it: the unit that is assigned. Pure."""

from collections.abc import Mapping

from outfitter.control.experiments.parts import Unit
from outfitter.control.principal import Principal


def unit_of(
    unit: Unit, body: Mapping[str, object], headers: Mapping[str, str], principal: Principal
) -> str | None:
    """The unit of a request; None where it names nobody.

    By user: the body's `user`, else its `safety_identifier`, else `metadata.user_id`, where
    Anthropic's API has it. By key: the visible prefix of the API key.
    """
    if unit.by == "key":
        return principal.key
    if unit.by == "header":
        return _text(headers.get(str(unit.header)))
    metadata = body.get("metadata")
    named = metadata.get("user_id") if isinstance(metadata, Mapping) else None
    for value in (body.get("user"), body.get("safety_identifier"), named):
        if isinstance(value, str) and value:
            return value
    return None


def _text(value: str | None) -> str | None:
    """A header as it was meant: in UTF-8 where it is, else in Latin-1."""
    if not value:
        return None
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value
