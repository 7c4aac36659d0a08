"""What a tenant may use at most, and how an operator says so. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from outfitter.errors import InvalidLimits
from taskvectors.values import kind_of

LARGEST = 2**53
"""The largest whole number that every JSON reader keeps exact."""
_LEAST = {"concurrent_requests": 1}
"""Whole numbers begin at zero, but for these."""


@dataclass(frozen=True)
class Limits:
    """The limits of one tenant; None is unlimited.

    tokens: of prompts and answers together. stored_bytes: files of its namespaces. pool_share: its
    part of the pool of resident vectors, 0 to 1; None for an equal part. queue: its requests that
    may wait for their turn. reads: requests that list or show something. comparisons: those for the
    interference of task vectors. feedback: entries, of which a request may have many. experiments:
    in its namespaces, whatever their status.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    concurrent_requests: int | None = None
    stored_bytes: int | None = None
    pool_share: float | None = None
    queue: int | None = None
    reads_per_minute: int | None = None
    comparisons_per_minute: int | None = None
    feedback_per_minute: int | None = None
    experiments: int | None = None

    @classmethod
    def parse(cls, given: Mapping[str, object], over: Self | None = None) -> Self:
        """The limits that a mapping says; null is unlimited, what it leaves out is as in `over`.

        Raises InvalidLimits, which names the key, its value and what would be right.
        """
        known = [field.name for field in fields(cls)]
        if unknown := sorted(str(key) for key in given if key not in known):
            choices = ", ".join(known)
            raise InvalidLimits(f"unknown limit {unknown[0][:80]!r}; choose {choices}")
        checked: dict[str, Any] = {key: _checked(key, given[key]) for key in given}
        return replace(over or cls(), **checked)

    @property
    def has_windows(self) -> bool:
        """Whether anything is counted per minute or day."""
        windows = (self.requests_per_minute, self.tokens_per_minute, self.tokens_per_day)
        return any(limit is not None for limit in windows)

    def given(self) -> dict[str, int | float]:
        """What is limited, as `parse` reads it."""
        return {key: limit for key, limit in asdict(self).items() if limit is not None}


GENEROUS = Limits(
    reads_per_minute=6000,
    comparisons_per_minute=300,
    feedback_per_minute=100_000,
    experiments=1000,
)
"""Where nothing else is said: far beyond what people do, and what one server answers at ease."""

LimitsOf = Callable[[str], Limits]
"""The limits of a tenant by its name. Asked with every request: it neither waits nor raises."""


@dataclass(frozen=True)
class LimitsBook:
    """The limits of all tenants: those that are named, and a default."""

    default: Limits = GENEROUS
    tenants: Mapping[str, Limits] | None = None

    @classmethod
    def parse(cls, given: object) -> Self:
        """`{"default": {…}, "tenants": {"acme": {…}}}`; raises InvalidLimits.

        What a tenant leaves out is as in the default.
        """
        book = _object(given, "the limits")
        if unknown := sorted(str(key) for key in book if key not in ("default", "tenants")):
            raise InvalidLimits(f"unknown key {unknown[0][:80]!r}; choose default, tenants")
        default = Limits.parse(_object(book.get("default"), "default"), GENEROUS)
        tenants = {}
        for name, limits in _object(book.get("tenants"), "tenants").items():
            where = f"tenants.{str(name)[:80]}"
            try:
                tenants[str(name)] = Limits.parse(_object(limits, where), default)
            except InvalidLimits as error:
                raise InvalidLimits(f"{where}: {error}") from error
        return cls(default, tenants)

    def of(self, tenant: str) -> Limits:
        """The limits of a tenant."""
        return (self.tenants or {}).get(tenant, self.default)


def _object(value: object, what: str) -> Mapping[str, object]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidLimits(f"{what} must be an object, not {kind_of(value)}")
    return value


def _checked(key: str, value: object) -> int | float | None:
    if value is None:
        return None
    if key == "pool_share":
        return _share(value)
    least = _LEAST.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
        raise InvalidLimits(
            f"{key} must be a whole number from {least} to {LARGEST}, or null for no limit,"
            f" not {_shown(value)}"
        )
    return value


def _share(value: object) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 1:  # type: ignore[operator]
        raise InvalidLimits(
            f"pool_share must be a number from 0 to 1, or null for an equal part,"
            f" not {_shown(value)}"
        )
    return float(value)  # type: ignore[arg-type]


def _shown(value: object) -> str:
    is_plain = isinstance(value, int | float | str)
    return repr(value)[:80] if is_plain else kind_of(value)
