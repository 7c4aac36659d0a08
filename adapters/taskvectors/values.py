"""JSON values of requests: numbers within bounds, fields that exist. Pure."""

from collections.abc import Mapping, Set

from taskvectors.errors import InvalidLoadout

MAX_ECHO = 200
"""Characters of a wrong value that an error repeats."""

MAX_WEIGHT = 16.0

_KINDS = {"NoneType": "null", "str": "a string", "bool": "a boolean", "list": "a list"}


def parse_weight(value: object, where: str) -> float:
    """A finite number within ±MAX_WEIGHT; raises InvalidLoadout that begins with `where`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidLoadout(f"{where} must be a number, not {kind_of(value)}")
    if not abs(value) <= MAX_WEIGHT:  # False for NaN, too
        raise InvalidLoadout(
            f"{where} must be finite and within ±{MAX_WEIGHT:g}, not {str(value)[:40]}"
        )
    return float(value) + 0.0


def reject_unknown(fields: Mapping[str, object], known: Set[str], where: str) -> None:
    """Raise InvalidLoadout for a field that is not known."""
    if unknown := sorted(str(key) for key in fields.keys() - known):
        raise InvalidLoadout(
            f"unknown field {unknown[0][:MAX_ECHO]!r} in {where}; choose {', '.join(sorted(known))}"
        )


def kind_of(value: object) -> str:
    """What JSON calls the type of `value`."""
    return _KINDS.get(type(value).__name__, type(value).__name__)
