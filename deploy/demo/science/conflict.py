"""Do figures of interference, known before serving, predict what a pair of skills loses?"""

import json
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


def figures_of(vectors: Path, cache: Path) -> Facts:
    """Norms, and the figures of every pair under `a+b`; kept in `cache`."""
    if not cache.exists():
        report = compare({name: vectors / f"{name}.safetensors" for name in SKILLS})
        found = {
            "norms": {vector.name: vector.norm for vector in report.vectors},
            "pairs": {f"{p.left}+{p.right}": _figures(p.overall) for p in report.pairs},
        }
        cache.write_text(json.dumps(found, indent=1))
    known: Facts = json.loads(cache.read_text())
    return known


def _figures(f: Figures) -> Facts:
    subspace = 0.0 if f.subspace is None else (f.subspace.left + f.subspace.right) / 2
    return {
        "cosine": f.cosine,
        "conflict": f.conflict,
        "jaccard": f.jaccard,
        "overlap energy": list(f.overlap_energy),
        "subspace": subspace,
    }


def against_linear(rows: dict[str, Facts]) -> list[Facts]:
    """Of every other method: what skills gain on average over linear, on the same prompts."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for row in rows.values():
        if row["experiment"] == "matrix" and row.get("method", "linear") != "linear":
            plain = rows["+".join(row["skills"]) + " by linear"]
            method = row["cell"].partition(" by ")[2]
            kind = "pairs" if len(row["skills"]) == 2 else "all five"
            changes = [(kept(row, skill), kept(plain, skill)) for skill in row["skills"]]
            found.setdefault((kind, method), []).extend(changes)
    return [
        {
            "loadouts": kind,
            "method": method,
            "gain": round(gain, 4),
            "interval": [round(v, 4) for v in interval],
            "prompts": len(changes[0][0]),
            "loadouts_times_skills": len(changes),
        }
        for (kind, method), changes in found.items()
        for gain, interval in [mean_drop(changes)]
    ]


def conflict(rows: dict[str, Facts], figures: Facts) -> Facts:
    """Figures and drops of all pairs, by linear merge at weight 1, and how they correlate."""
    norms = figures["norms"]
    pairs = [_pair(rows, pair, figures) for pair in combinations(SKILLS, 2)]
    directed = [_directed(rows, pair, figures) for pair in permutations(SKILLS, 2)]
    return {
        "norms": norms,
        "pairs": pairs,
        "directed": directed,
        "pair_correlations": _correlations(pairs),
        "directed_correlations": _correlations(directed),
    }


def _pair(rows: dict[str, Facts], pair: tuple[str, str], figures: Facts) -> Facts:
    """What both lose together."""
    norms, found = [figures["norms"][skill] for skill in pair], figures["pairs"]["+".join(pair)]
    overlap = float(np.mean(found["overlap energy"]))
    size = {"norm ratio": abs(math.log(norms[0] / norms[1])), "norm of both": math.hypot(*norms)}
    return {**_lost(rows, pair, pair), "figures": {**found, "overlap energy": overlap, **size}}


def _directed(rows: dict[str, Facts], pair: tuple[str, str], figures: Facts) -> Facts:
    """What the first of the pair loses to the second."""
    skill, partner = pair
    forward = "+".join(pair) in figures["pairs"]
    found = figures["pairs"]["+".join(pair if forward else pair[::-1])]
    norms = figures["norms"]
    size = {"norm of partner": norms[partner], "norm over own": norms[partner] / norms[skill]}
    overlap = found["overlap energy"][0 if forward else 1]
    order = pair if forward else pair[::-1]
    return {
        **_lost(rows, order, (skill,)),
        "pair": list(pair),
        "figures": {**found, "overlap energy": overlap, **size},
    }


def _lost(rows: dict[str, Facts], pair: tuple[str, str], skills: tuple[str, ...]) -> Facts:
    """Mean drop of `skills` from alone to the pair, with a bootstrap interval over prompts."""
    merged = rows[f"{'+'.join(pair)} by linear"]
    changes = [(kept(rows[f"{skill} by linear"], skill), kept(merged, skill)) for skill in skills]
    drop, interval = mean_drop(changes)
    return {
        "pair": list(pair),
        "drop": round(drop, 4),
        "interval": [round(v, 4) for v in interval],
    }


def _correlations(points: list[Facts]) -> Facts:
    drops = np.array([p["drop"] for p in points])
    return {
        name: correlation(np.array([p["figures"][name] for p in points]), drops)
        for name in points[0]["figures"]
    }
