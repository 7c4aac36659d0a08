"""Merge methods and their parameters, as requests, files and the command line name them. Pure.

`density` counts all elements of a parameter, as in the papers, except where drops are random:
there it is the chance of each nonzero entry. What is declared here is implemented in `merge`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
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
            least = f"above {self.low:g}" if self.above else f"from {self.low:g}"
            raise self._error(value, f"{least} to {self.high:g}")
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


def find_method(name: object) -> Method:
    """The method called `name`; raises InvalidLoadout with what it could have meant."""
    if isinstance(name, str) and name in METHODS:
        return METHODS[name]
    near = get_close_matches(name, METHODS, n=1) if isinstance(name, str) else []
    hint = f"did you mean {near[0]!r}?" if near else f"choose {', '.join(METHODS)}"
    raise InvalidLoadout(f"unsupported method {str(name)[:MAX_ECHO]!r}; {hint}")


def _density(default: float, what: str) -> Parameter:
    return Parameter("density", default, what, above=True)


_LAMBDA = Parameter("lambda", 1.0, "Scale of the merged delta.", low=-16.0, high=16.0)
_SEED = Parameter("seed", 0, "Of the random drops; the same seed gives the same bytes.", high=2**53)
_TRIM = "Share of each parameter's elements, largest magnitudes first, that every vector keeps."
_DROP = "Chance of each entry to be kept."
_MASK_LAMBDA = Parameter(
    "mask_lambda", 0.4, "λ of the mask |τ| > λ |τ_MTL − τ|.", low=0.0, high=16.0
)
_DARE = (
    _density(0.1, _DROP),
    _LAMBDA,
    Parameter(
        "rescale",
        "density",
        "'density' divides by it (the paper, PEFT); 'l1' keeps the L1 norm (mergekit); 'none'.",
        choices=("density", "l1", "none"),
    ),
    _SEED,
)

_ALL = (
    Method(
        "linear",
        "Weighted sum of the vectors; computed per request.",
        "Ilharco et al. 2023, arXiv 2212.04089",
        "mergekit task_arithmetic, PEFT linear",
    ),
    Method(
        "ties",
        "Trim each vector, elect a sign per element, average what agrees.",
        "Yadav et al. 2023, arXiv 2306.01708, §4",
        "mergekit: trims per parameter; weights count in the election and in the average",
        (
            _density(0.2, _TRIM),
            _LAMBDA,
            Parameter("normalize", True, "Divide by the sum of the agreeing weights."),
        ),
    ),
    Method(
        "ties_peft",
        "TIES with unweighted election.",
        "Yadav et al. 2023, arXiv 2306.01708, §4",
        "PEFT: elects without weights, divides by the number of agreeing vectors",
        (
            _density(0.2, _TRIM),
            Parameter(
                "majority_sign",
                "total",
                "Elect by sum of values ('total') or by count ('frequency').",
                choices=("total", "frequency"),
            ),
        ),
    ),
    Method(
        "ties_original",
        "TIES as the authors published it.",
        "Yadav et al. 2023, arXiv 2306.01708, §4",
        "the authors' code: trims over the whole model; a zero sum takes the global majority",
        (
            _density(0.2, "Share of the whole model's elements that every vector keeps."),
            _LAMBDA,
            Parameter(
                "merge",
                "mean",
                "How agreeing values are combined.",
                choices=("mean", "sum", "max"),
            ),
        ),
        is_weighted=False,
        wants_base=True,
    ),
    Method(
        "dare_linear",
        "Drop entries at random, rescale the rest, sum.",
        "Yu et al. 2024, arXiv 2311.03099, §3",
        "the paper and PEFT: divides by the density",
        _DARE,
    ),
    Method(
        "dare_ties",
        "Drop at random, rescale, then keep what agrees with the elected sign.",
        "Yu et al. 2024, arXiv 2311.03099, §3",
        "mergekit's election with the paper's rescaling",
        (*_DARE, Parameter("normalize", False, "Divide by the sum of the agreeing weights.")),
    ),
    Method(
        "della",
        "Drop at random, small magnitudes of a row likelier, rescale, keep what agrees.",
        "Deep et al. 2024, arXiv 2406.11617, §3",
        "mergekit, but rescaled by each entry's own probability as in the paper",
        (
            _density(0.5, "Mean chance of an entry to be kept."),
            Parameter("epsilon", 0.15, "Half the spread of the chances.", high=0.5),
            _LAMBDA,
            Parameter("normalize", True, "Divide by the sum of the agreeing weights."),
            Parameter(
                "rescale",
                "probability",
                "'probability' divides by it (the paper); 'l1' keeps the L1 norm (mergekit);"
                " 'none'.",
                choices=("probability", "l1", "none"),
            ),
            _SEED,
        ),
    ),
    Method(
        "breadcrumbs",
        "Drop the largest and the smallest entries of each vector, sum the rest.",
        "Davari & Belilovsky 2024, arXiv 2312.06795, §3",
        "mergekit",
        (
            _density(0.1, "Share of each parameter's elements that every vector keeps."),
            Parameter("gamma", 0.01, "Share of the largest elements to drop first."),
            _LAMBDA,
        ),
    ),
    Method(
        "sce",
        "Select elements of high variance, weigh vectors by energy, erase minority signs.",
        "Wan et al. 2024, arXiv 2408.07990, §3",
        "mergekit",
        (
            Parameter(
                "select_topk", 1.0, "Share of the elements, highest variance first.", above=True
            ),
        ),
        is_weighted=False,
    ),
    Method(
        "consensus",
        "The sum, without elements that matter to fewer than `agreement` vectors.",
        "Wang et al. 2024, arXiv 2405.07813, §4",
        "FusionBench",
        (
            Parameter("agreement", 2, "Masks that an element must be in.", low=0, high=16),
            _LAMBDA,
            _MASK_LAMBDA,
        ),
    ),
    Method(
        "tall_masks",
        "The sum, seen through the mask of one vector: that vector's own part of it.",
        "Wang et al. 2024, arXiv 2405.07813, §4",
        "FusionBench",
        (
            _LAMBDA,
            _MASK_LAMBDA,
            Parameter(
                "task", None, "The vector whose mask it is.", is_vector=True, is_required=True
            ),
        ),
    ),
    Method(
        "emr",
        "Elect a sign and the largest agreeing magnitude; with `task`, mask and rescale for it.",
        "Huang et al. 2024, arXiv 2405.17461, §3",
        "FusionBench",
        (Parameter("task", None, "The vector to be recovered.", is_vector=True),),
        is_weighted=False,
    ),
    Method(
        "slerp",
        "Walk from one fine-tuned checkpoint to another on the sphere of their weights.",
        "Shoemake 1985",
        "mergekit slerp of the two fine-tuned checkpoints, with t = w₂ / (w₁ + w₂)",
        at_request=False,
        wants_base=True,
        min_vectors=2,
        max_vectors=2,
    ),
    Method(
        "nuslerp",
        "Walk from one vector to another on the sphere of deltas.",
        "Shoemake 1985",
        "mergekit nuslerp with a base, t = w₂ / (w₁ + w₂)",
        (
            Parameter("flatten", True, "One angle for the whole parameter."),
            Parameter("row_wise", False, "If not flattened: an angle per column, not per row."),
        ),
        at_request=False,
        min_vectors=2,
        max_vectors=2,
    ),
    Method(
        "model_stock",
        "The mean, shrunk towards the base by the angles between the vectors.",
        "Jang et al. 2024, arXiv 2403.19522, §4",
        "mergekit",
        (Parameter("filter_wise", False, "One angle for each row."),),
        is_weighted=False,
        at_request=False,
        min_vectors=2,
    ),
    Method(
        "knots",
        "Align the vectors in one SVD basis, then TIES there.",
        "Stoica et al. 2024, arXiv 2410.19735, §4",
        "FusionBench's alignment, then `ties` of each vector's part, trimmed per parameter",
        (_density(0.2, _TRIM), _LAMBDA),
        at_request=False,
    ),
    Method(
        "tsv",
        "Keep each vector's largest singular vectors, made orthogonal to the others'.",
        "Gargiulo et al. 2024, arXiv 2412.00081, §4",
        "FusionBench; directions of no energy take no part, every vector keeps at least one",
        (_LAMBDA,),
        at_request=False,
    ),
    Method(
        "iso_c",
        "The sum, with all singular values made equal.",
        "Marczak et al. 2025, arXiv 2502.04959, §4",
        "FusionBench, within the rank of the sum",
        (_LAMBDA,),
        at_request=False,
    ),
)

METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _ALL})
LINEAR = METHODS["linear"]
