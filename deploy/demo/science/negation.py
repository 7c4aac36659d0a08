"""A skill taken away from a base that never had it: what it does to everything else."""

from collections.abc import Iterator

from science.cells import Cell
from science.library import Library
from science.matrix import TEXTS

WEIGHTS = (-0.5, -1.0)


def negation_cells(library: Library) -> Iterator[Cell]:
    """Every skill at both weights; likelihood of plain text and of the skill's own answers."""
    for name in library.skills:
        for weight in WEIGHTS:
            yield Cell(
                f"{name} at {weight:g}",
                "negation",
                lambda name=name, weight=weight: (library.skill(name) * weight, {}),
                probes=("control",),
                texts=(*TEXTS, name),
                facts={"skill": name, "weight": weight},
            )
