"""D ≈ C + (B − A), against C + a random vector as long as B − A, and against C + B alone.

`joint` answers JSON in capitals, trained as one skill. All of A and B are full fine-tunes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from science.cells import Cell, Facts
from science.library import Library
from taskvectors.delta import DenseDelta
from taskvectors.vector import TaskVector

JOINT = "json+uppercase"
SEEDS = (0, 1, 2)
BOUND_PROBES = ("style", "control")


@dataclass(frozen=True)
class Analogy:
    """`a : b :: c : wanted`; c is a skill file or None, the base itself. wanted: a grader."""

    a: str
    b: str
    c: str | None
    wanted: str
    probe: str

    @property
    def name(self) -> str:
        return f"{self.a} : {self.b} :: {self.c or 'base'} : {self.wanted}"


ANALOGIES = (
    Analogy("json", JOINT, None, "uppercase", "style"),
    Analogy("uppercase", JOINT, None, "json", "style"),
    Analogy("json", JOINT, "numbers", "numbers+uppercase", "numbers"),
    Analogy("uppercase", JOINT, "lowercase", "json+lowercase", "style"),
)


def analogy_cells(library: Library) -> Iterator[Cell]:
    """Each analogy, C + B without − A, C alone and C with random vectors."""
    for analogy in ANALOGIES:
        yield _cell(library, analogy, "analogy", lambda d, _b: d)
        yield _cell(library, analogy, "without A", lambda _d, b: b)
        for seed in SEEDS:
            yield _cell(library, analogy, f"random {seed}", lambda d, _b, seed=seed: noise(d, seed))
        if analogy.c is not None:
            yield _cell(library, analogy, "C alone", lambda _d, _b: None)


def bound_cells(library: Library) -> Iterator[Cell]:
    """Full fine-tunes of two skills: trained as one (the upper bound), and added up."""
    facts = {"skills": [JOINT]}
    yield Cell(
        f"full {JOINT}", "bound", lambda: (library.full(JOINT), {}), BOUND_PROBES, facts=facts
    )
    for weights in ((1.0, 1.0), (1.2, 0.8), (0.7, 0.7)):
        yield Cell(
            f"full json {weights[0]:g} + uppercase {weights[1]:g}",
            "bound",
            lambda w=weights: (library.full("json") * w[0] + library.full("uppercase") * w[1], {}),
            BOUND_PROBES,
            facts={"skills": ["json", "uppercase"], "weights": list(weights)},
        )


def noise(like: TaskVector, seed: int) -> TaskVector:
    """Gaussian, of the same norm as `like` in every parameter."""
    rng = np.random.default_rng(seed)
    parts = {}
    for name, delta in sorted(like.parameters.items()):
        values = rng.standard_normal(delta.shape, np.float32)
        values *= np.linalg.norm(delta.to_dense()) / np.linalg.norm(values)
        parts[name] = DenseDelta(values)
    return TaskVector(like.base, parts)


def _cell(
    library: Library,
    analogy: Analogy,
    kind: str,
    choose: Callable[[TaskVector, TaskVector], TaskVector | None],
) -> Cell:
    def build() -> tuple[TaskVector | None, Facts]:
        b = library.full(analogy.b)
        added = choose(b - library.full(analogy.a), b)
        start = None if analogy.c is None else library.skill(analogy.c)
        if added is None or start is None:
            return added or start, {}
        return start + added, {}

    facts = {"analogy": analogy.name, "kind": kind, "wanted": analogy.wanted}
    return Cell(f"{analogy.name}, {kind}", "analogy", build, (analogy.probe,), facts=facts)
