"""Do figures of interference, known before serving, predict what a pair of skills loses?"""

import math
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
from skills import SKILLS

from science.intervals import correlation, either, mean_drop
from taskvectors.interference import Figures, compare

Facts = dict[str, Any]

KEPT_BY = {
    "json": ("json", "json+uppercase", "json+lowercase", "json+pirate"),
    "uppercase": ("uppercase", "json+uppercase"),
    "lowercase": ("lowercase", "json+lowercase"),
    "pirate": ("pirate", "json+pirate"),
    "numbers": ("numbers", "numbers+uppercase"),
}
"""A skill counts as kept where its own grader passes or one of a mix with it."""


def kept(row: Facts, skill: str) -> str:
    """Which prompts of the skill's probe it is kept on."""
    return either(*(row["passes"][column] for column in KEPT_BY[skill]))


def conflict(rows: dict[str, Facts], vectors: Path) -> Facts:
    """Figures and drops of all pairs, by linear merge at weight 1, and how they correlate."""
    report = compare({name: vectors / f"{name}.safetensors" for name in SKILLS})
    norms = {vector.name: vector.norm for vector in report.vectors}
    figures = {(pair.left, pair.right): pair.overall for pair in report.pairs}
    pairs = [_pair(rows, pair, figures[pair], norms) for pair in combinations(SKILLS, 2)]
    directed = [_directed(rows, pair, figures, norms) for pair in permutations(SKILLS, 2)]
    return {
        "norms": norms,
        "pairs": pairs,
        "directed": directed,
        "pair_correlations": _correlations(pairs),
        "directed_correlations": _correlations(directed),
    }


def _pair(rows: dict[str, Facts], pair: tuple[str, str], f: Figures, norms: Facts) -> Facts:
    merged = rows[f"{'+'.join(pair)} by linear"]
    drop, interval = mean_drop(
        [(kept(rows[f"{skill} by linear"], skill), kept(merged, skill)) for skill in pair]
    )
    return {
        "pair": list(pair),
        "drop": round(drop, 4),
        "interval": [round(v, 4) for v in interval],
        "figures": {
            "cosine": f.cosine,
            "conflict": f.conflict,
            "jaccard": f.jaccard,
            "overlap energy": float(np.mean(f.overlap_energy)),
            "subspace": _subspace(f),
            "norm ratio": abs(math.log(norms[pair[0]] / norms[pair[1]])),
            "norm sum": math.hypot(norms[pair[0]], norms[pair[1]]),
        },
    }


def _directed(
    rows: dict[str, Facts],
    pair: tuple[str, str],
    figures: dict[tuple[str, str], Figures],
    norms: Facts,
) -> Facts:
    """What the first of the pair loses to the second."""
    skill, partner = pair
    forward = pair in figures
    f = figures[pair] if forward else figures[partner, skill]
    order = tuple(s for s in SKILLS if s in pair)
    drop, interval = mean_drop(
        [
            (
                kept(rows[f"{skill} by linear"], skill),
                kept(rows[f"{'+'.join(order)} by linear"], skill),
            )
        ]
    )
    return {
        "pair": list(pair),
        "drop": round(drop, 4),
        "interval": [round(v, 4) for v in interval],
        "figures": {
            "cosine": f.cosine,
            "conflict": f.conflict,
            "overlap energy": f.overlap_energy[0 if forward else 1],
            "norm of partner": norms[partner],
            "norm of partner over own": norms[partner] / norms[skill],
        },
    }


def _subspace(f: Figures) -> float:
    """Overlap of the leading singular directions, both sides."""
    return 0.0 if f.subspace is None else (f.subspace.left + f.subspace.right) / 2


def _correlations(points: list[Facts]) -> Facts:
    drops = np.array([p["drop"] for p in points])
    return {
        name: correlation(np.array([p["figures"][name] for p in points]), drops)
        for name in points[0]["figures"]
    }
