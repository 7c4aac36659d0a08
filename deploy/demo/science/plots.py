"""Which picture comes from which results."""

import json
from pathlib import Path
from typing import Any

from science.canvas import save
from science.density_figures import draw_density
from science.matrix_figures import draw_matrix, draw_methods
from science.weight_figures import draw_analogy, draw_conflict, draw_negation

PICTURES = {
    "science_matrix.png": (draw_matrix, ("matrix",)),
    "science_methods.png": (draw_methods, ("matrix",)),
    "science_density.png": (draw_density, ("density",)),
    "science_negation.png": (draw_negation, ("matrix", "negation")),
    "science_analogy.png": (draw_analogy, ("analogy",)),
    "science_conflict.png": (draw_conflict, ("conflict",)),
}


def draw_all(results: Path, out: Path) -> None:
    """Every picture whose results are there."""
    for name, (draw, needed) in PICTURES.items():
        files = [results / f"science_{experiment}.json" for experiment in needed]
        if all(file.exists() for file in files):
            save(draw(*map(_load, files)), out / name)
            print(out / name)


def _load(file: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(file.read_text())
    return result
