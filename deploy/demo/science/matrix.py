"""Every skill, every pair and all five, in the merge methods that a request can name."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from science.cells import Cell, Facts
from science.library import Library
from taskvectors.merge import merge_vectors
from taskvectors.vector import TaskVector

Parameters = dict[str, Any]

PAIR_METHODS: tuple[tuple[str, Parameters], ...] = (
    ("ties", {"density": 0.2}),
    ("dare_linear", {"density": 0.5, "seed": 0}),
)
ALL_METHODS: tuple[tuple[str, Parameters], ...] = (
    ("ties", {"density": 0.2}),
    ("dare_linear", {"density": 0.5, "seed": 0}),
    ("dare_linear", {"density": 0.1, "seed": 0}),
    ("della", {"density": 0.5, "seed": 0}),
    ("consensus", {}),
    ("emr", {}),
    ("dare_ties", {"density": 0.5, "seed": 0}),
    ("breadcrumbs", {"density": 0.1}),
    ("sce", {}),
)
"""`ties_peft` is left out: with equal weights it is `ties`, entry by entry."""

SHRUNK = (0.8, 0.5)
"""The other methods shrink the sum, too: these tell how much of a gain that alone explains."""

TEXTS = ("plain", "license")


def linear_cells(library: Library) -> Iterator[Cell]:
    """The base, singles, pairs and all, added up with weight 1."""
    yield Cell("base", "matrix", lambda: (None, {}), texts=(*TEXTS, *library.skills))
    for name in library.skills:
        yield _cell(library, (name,), "linear", {}, texts=(*TEXTS, name))
    for pair in combinations(library.skills, 2):
        yield _cell(library, pair, "linear", {})
    yield _cell(library, library.skills, "linear", {})


def method_cells(library: Library) -> Iterator[Cell]:
    """All five by every method, and added up with smaller weights."""
    for weight in SHRUNK:
        yield _cell(library, library.skills, "linear", {}, weight=weight)
    for method, parameters in ALL_METHODS:
        yield _cell(library, library.skills, method, parameters)


def pair_method_cells(library: Library) -> Iterator[Cell]:
    """Each pair by two methods."""
    for method, parameters in PAIR_METHODS:
        for pair in combinations(library.skills, 2):
            yield _cell(library, pair, method, parameters)


def _cell(
    library: Library,
    names: Sequence[str],
    method: str,
    parameters: Parameters,
    texts: tuple[str, ...] = (),
    weight: float = 1.0,
) -> Cell:
    def build() -> tuple[TaskVector, Facts]:
        vectors = [library.skill(name) for name in names]
        return merge_vectors(vectors, [weight] * len(names), method, **parameters), {}

    shown = ", ".join(f"{key} {value:g}" for key, value in parameters.items())
    called = method if weight == 1.0 else f"{method} at {weight:g}"
    label = f"{called} {shown}".strip()
    facts = {"skills": list(names), "method": called, "parameters": parameters}
    return Cell(f"{'+'.join(names)} by {label}", "matrix", build, texts=texts, facts=facts)
