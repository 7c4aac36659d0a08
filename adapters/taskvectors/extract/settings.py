"""How to extract: a method, its options, and which option belongs to which method."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from taskvectors.container.dtypes import VALUE_NAMES
from taskvectors.errors import TaskVectorError
from taskvectors.format import INDEX_ENCODINGS, VALUE_ENCODINGS
from taskvectors.format.parameters import MAX_RANK
from taskvectors.sparsify import check_epsilon

SCOPES = ("tensor", "global")
MAX_SEED = 2**63 - 1

OPTIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "magnitude": {"density": 0.01, "scope": "tensor"},
        "dare": {"density": 0.1, "seed": 0},
        "della": {"density": 0.2, "epsilon": 0.1, "seed": 0},
        "breadcrumbs": {"density": 0.1, "gamma": 0.01},
        "low_rank": {"rank": 16, "energy": None, "seed": 0},
        "lossless": {},
    }
)
"""Each method's options and their defaults."""

METHODS = tuple(OPTIONS)
DEFAULT_VALUES = "bf16"


class InvalidExtraction(TaskVectorError, ValueError):
    """An extraction was asked for in a way that cannot be done.

    The message has the names of options in backticks, so that a command line can spell them.
    """


@dataclass(frozen=True)
class Settings:
    """A checked extraction; what the method has no use for is None.

    value_dtype: None stores lossless values in the fine-tuned checkpoint's own precision.
    """

    method: str
    value_dtype: str | None
    index: str
    density: float | None = None
    scope: str | None = None
    seed: int | None = None
    epsilon: float | None = None
    gamma: float | None = None
    rank: int | None = None
    energy: float | None = None

    def describe(self) -> dict[str, Any]:
        """The `extraction` field of the file: the method and what it used."""
        fields = {name: getattr(self, name) for name in OPTIONS[self.method]}
        if fields.get("scope") == "tensor":
            del fields["scope"]
        return {"method": self.method} | {n: v for n, v in fields.items() if v is not None}


def make_settings(
    method: str, value_dtype: str | None, index: str, given: Mapping[str, Any]
) -> Settings:
    """Defaults for what is None in `given`; raises InvalidExtraction for what is of no use."""
    _choose("method", method, METHODS)
    _choose("index", index, INDEX_ENCODINGS)
    options = {name: value for name, value in given.items() if value is not None}
    allowed = OPTIONS[method]
    if unused := [name for name in options if name not in allowed]:
        use = ", ".join(f"`{name}`" for name in allowed) or "no options"
        raise InvalidExtraction(
            f"`{unused[0]}` is of no use with `method` {method}; it takes {use}"
        )
    if method == "low_rank" and "energy" in options:
        if "rank" in options:
            raise InvalidExtraction("`rank` and `energy` exclude each other; choose one")
        options["rank"] = None
    values = {**allowed, **options}
    _check(values)
    return Settings(method, _value_dtype(method, value_dtype), index, **values)


def _value_dtype(method: str, value_dtype: str | None) -> str | None:
    if value_dtype is None:
        return None if method == "lossless" else DEFAULT_VALUES
    choices = tuple(VALUE_NAMES) if method in ("lossless", "low_rank") else VALUE_ENCODINGS
    if value_dtype in VALUE_ENCODINGS and value_dtype not in choices:
        raise InvalidExtraction(
            f"`value_dtype` {value_dtype} is of no use with `method` {method}; choose"
            f" {', '.join(choices)}"
        )
    return _choose("value_dtype", value_dtype, choices)


def _check(values: Mapping[str, Any]) -> None:
    """Raise InvalidExtraction for a value out of its range."""
    for name in ("density", "energy"):
        share = values.get(name)
        if share is not None and not 0 < share <= 1:
            raise InvalidExtraction(f"`{name}` must be above 0 and at most 1, not {share}")
    _choose("scope", values.get("scope", "tensor"), SCOPES)
    gamma, rank, seed = values.get("gamma", 0.0), values.get("rank"), values.get("seed", 0)
    if not 0 <= gamma < 1:
        raise InvalidExtraction(f"`gamma` must be at least 0 and below 1, not {gamma}")
    if rank is not None and not 1 <= rank <= MAX_RANK:
        raise InvalidExtraction(f"`rank` must be from 1 to {MAX_RANK}, not {rank}")
    if not 0 <= seed <= MAX_SEED:
        raise InvalidExtraction(f"`seed` must be from 0 to {MAX_SEED}, not {seed}")
    if (epsilon := values.get("epsilon")) is not None:
        if not math.isfinite(epsilon):
            raise InvalidExtraction(f"`epsilon` must be a finite number, not {epsilon}")
        try:
            check_epsilon(values["density"], epsilon)
        except ValueError as error:
            raise InvalidExtraction(f"`epsilon` does not fit `density`: {error}") from error


def _choose(what: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise InvalidExtraction(f"unsupported `{what}` {value!r}; choose {', '.join(choices)}")
    return value
