"""Every merge method, as requests, files and the command line name it. Pure.

`density` counts all elements of a parameter, as in the papers, except where drops are random:
there it is the chance of each nonzero entry. What is declared here is implemented in `merge`.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType

from taskvectors.errors import InvalidLoadout
from taskvectors.method import Method, Parameter
from taskvectors.values import MAX_ECHO


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


def find_method(name: object) -> Method:
    """The method called `name`; raises InvalidLoadout with what it could have meant."""
    if isinstance(name, str) and name in METHODS:
        return METHODS[name]
    near = get_close_matches(name, METHODS, n=1) if isinstance(name, str) else []
    hint = f"did you mean {near[0]!r}?" if near else f"choose {', '.join(METHODS)}"
    raise InvalidLoadout(f"unsupported method {str(name)[:MAX_ECHO]!r}; {hint}")
