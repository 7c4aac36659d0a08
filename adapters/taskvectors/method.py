"""What a merge method declares: its parameters, their bounds, and what it asks of vectors. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from taskvectors.errors import InvalidLoadout
from taskvectors.selection import Selection
from taskvectors.values import MAX_ECHO

MERGE_ONCE = "merge once with `outfitter merge` and publish the result"

Value: TypeAlias = float | int | bool | str | None
Parameters: TypeAlias = tuple[tuple[str, Value], ...]
"""Sorted by name, complete: every parameter of the method with its value."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method. The default's type is the parameter's type.

    low, high: inclusive bounds of a number; `above` excludes `low` itself. choices: of a text.
    is_vector: the value is a reference to one of the loadout's vectors. is_required: it has no
    useful default.
    """

    name: str
    default: Value
    description: str
    low: float = 0.0
    high: float = 1.0
    above: bool = False
    choices: tuple[str, ...] = ()
    is_vector: bool = False
    is_required: bool = False

    def parse(self, value: object) -> Value:
        """`value` in the parameter's own type; raises InvalidLoadout."""
        if self.is_vector:
            return self._reference(value)
        if self.choices:
            return self._choice(value)
        if isinstance(self.default, bool):
            if not isinstance(value, bool):
                raise self._error(value, "true or false")
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._error(value, "a number")
        if not (self.low < value if self.above else self.low <= value) or not value <= self.high:
            least = f"above {_shown(self.low)}" if self.above else f"from {_shown(self.low)}"
            raise self._error(value, f"{least} to {_shown(self.high)}")
        if isinstance(self.default, int) and int(value) != value:
            raise self._error(value, "a whole number")
        return int(value) if isinstance(self.default, int) else float(value) + 0.0

    def _reference(self, value: object) -> str | None:
        if value is None and not self.is_required:
            return None
        if not isinstance(value, str):
            raise self._error(value, "the name of one of the vectors")
        return value

    def _choice(self, value: object) -> str:
        if not isinstance(value, str) or value not in self.choices:
            raise self._error(value, " or ".join(repr(choice) for choice in self.choices))
        return value

    def _error(self, value: object, wanted: str) -> InvalidLoadout:
        return InvalidLoadout(f"{self.name} must be {wanted}, not {str(value)[:MAX_ECHO]!r}")


def _shown(bound: float) -> str:
    return str(int(bound)) if float(bound).is_integer() else f"{bound:g}"


@dataclass(frozen=True)
class Method:
    """A merge method. dialect: whose formula it is, where implementations differ.

    is_weighted: False where the formula knows no weights, so all must be 1. at_request: False
    where a result is dense or needs the base's weights: such a merge is made once, at publish time.
    wants_base: it looks at the base, or at its size.
    """

    name: str
    summary: str
    paper: str
    dialect: str
    parameters: tuple[Parameter, ...] = ()
    is_weighted: bool = True
    at_request: bool = True
    wants_base: bool = False
    min_vectors: int = 1
    max_vectors: int | None = None

    @property
    def vector_parameters(self) -> frozenset[str]:
        """The parameters that name one of the vectors."""
        return frozenset(p.name for p in self.parameters if p.is_vector)

    def parse(self, fields: Mapping[str, Any]) -> Parameters:
        """Every parameter with its value, the default where `fields` has none.

        Raises InvalidLoadout for an unknown parameter or a value out of bounds.
        """
        known = {parameter.name for parameter in self.parameters}
        if unknown := sorted(str(name) for name in fields.keys() - known):
            choices = f"choose {', '.join(sorted(known))}" if known else "it takes none"
            raise InvalidLoadout(
                f"unknown parameter {unknown[0][:MAX_ECHO]!r} of method {self.name!r}; {choices}"
            )
        given = {p.name: p.parse(fields.get(p.name, p.default)) for p in self.parameters}
        if "epsilon" in given:
            _check_chances(given)
        return tuple(sorted(given.items()))

    def check_vectors(self, weights: list[float]) -> None:
        """Raise InvalidLoadout unless the method can merge vectors with these weights."""
        most = len(weights) if self.max_vectors is None else self.max_vectors
        if weights and not self.min_vectors <= len(weights) <= most:
            wanted = f"{self.min_vectors} or more"
            if self.max_vectors is not None:
                same = self.min_vectors == self.max_vectors
                wanted = f"{'' if same else f'{self.min_vectors} to '}{self.max_vectors}"
            raise InvalidLoadout(f"method {self.name!r} takes {wanted} vectors, not {len(weights)}")
        if not self.is_weighted and any(weight != 1.0 for weight in weights):
            odd = next(weight for weight in weights if weight != 1.0)
            raise InvalidLoadout(
                f"method {self.name!r} knows no weights: leave them out, or 1; not {odd:g}"
            )

    def check_named(self, parameters: Mapping[str, Any], keys: Collection[str]) -> None:
        """Raise InvalidLoadout unless a parameter that names a vector names one of `keys`."""
        for name in self.vector_parameters:
            if parameters[name] is not None and parameters[name] not in keys:
                raise InvalidLoadout(
                    f"{name} must be one of the loadout's vectors, not {parameters[name]!r}"
                )

    def check_at_request(self) -> None:
        """Raise InvalidLoadout for a method whose merges are made at publish time only."""
        if not self.at_request:
            raise InvalidLoadout(
                f"method {self.name!r} has a dense result or needs the base's weights and is not"
                f" computed per request: {MERGE_ONCE}"
            )

    def check_selection(self, selection: Selection) -> None:
        """Raise InvalidLoadout unless the method can tell apart what the selection does."""
        factors = [entry[-1] for entry in (*selection.layers, *selection.modules)]
        odd = [factor for factor in factors if factor not in (0.0, 1.0)]
        if not self.is_weighted and odd:
            raise InvalidLoadout(
                f"method {self.name!r} knows no weights: select layers and modules with factor 0"
                f" or 1, not {odd[0]:g}"
            )


def _check_chances(values: Mapping[str, Any]) -> None:
    density, epsilon = values["density"], values["epsilon"]
    if density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
        raise InvalidLoadout(
            f"epsilon {epsilon:g} at density {density:g} gives chances from {density - epsilon:g}"
            f" to {density + epsilon:g}; both must lie within 0 and 1: choose an epsilon below"
            f" {min(density, 1 - density):g}"
        )
