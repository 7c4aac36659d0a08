"""Optimisers for `outfitter tune` at equal budgets, on surfaces whose best is known.

    python -m tests.benchmarks.optimisers -o tests/benchmarks/results/optimisers.json

A prompt is passed with a chance that falls with the distance from a best loadout; some prompts are
harder than others for all, and chance adds to that, as with short graded answers. `regret` is what
the found loadout's true pass rate lacks to the best one's. `cmaes` is only needed for its own rows.
"""

import argparse
import asyncio
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from outfitter.tuning.optimiser import Known, propose_random, propose_tpe
from outfitter.tuning.space import Candidate, Space
from outfitter.tuning.stage import Plan, Stage

NUM_PROMPTS = 48
BUDGETS = (16, 32, 64)
SHARED = 0.6


class Surface:
    """Pass rates over weights: a ridge of a random direction around a random best loadout."""

    def __init__(self, num_vectors: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.best = rng.uniform(0.4, 1.3, num_vectors)
        basis, _ = np.linalg.qr(rng.standard_normal((num_vectors, num_vectors)))
        widths = rng.uniform(0.15, 0.6, num_vectors)
        self.form = basis @ np.diag(1 / widths**2) @ basis.T
        self.top = rng.uniform(0.6, 0.95)
        self.hardness = rng.uniform(size=NUM_PROMPTS)
        self.seed = seed

    def rate(self, weights: Sequence[float]) -> float:
        distance = np.asarray(weights) - self.best
        return float(self.top * np.exp(-0.5 * distance @ self.form @ distance))

    def scores(self, candidate: Candidate, prompts: Sequence[int]) -> list[float]:
        """Common to all candidates but for a share that chance has."""
        rng = np.random.default_rng([self.seed, int(candidate.key, 16)])
        is_shared = rng.uniform(size=NUM_PROMPTS) < SHARED
        marks = np.where(is_shared, self.hardness, rng.uniform(size=NUM_PROMPTS))
        return (marks < self.rate(candidate.weights)).astype(float)[list(prompts)].tolist()


def propose_cmaes(
    space: Space,
    history: Sequence[Known],
    count: int,
    seed: int,
    num_initial: int = 0,
    population: int = 8,
) -> list[Candidate]:
    """CMA-ES from the best of the first candidates, every generation told again."""
    from cmaes import CMA

    low, high = space.weights
    first = [known for known in history[:num_initial] if known.score is not None]
    start = max(first, key=lambda known: known.score).candidate.weights
    es = CMA(
        mean=np.clip(start, low, high),
        sigma=(high - low) / 5,
        bounds=np.array([[low, high]] * space.num_vectors),
        seed=seed,
        population_size=population,
    )
    told = history[num_initial:]
    for at in range(0, len(told) - population + 1, population):
        generation = told[at : at + population]
        es.tell([(np.array(k.candidate.weights), -(k.score or 0.0)) for k in generation])
    es._rng = np.random.RandomState(seed + len(history))
    return [space.candidate(es.ask().tolist()) for _ in range(count)]


def find(
    surface: Surface, num_vectors: int, budget: int, seed: int, propose: Callable, **plan: Any
) -> float:
    """The regret of one search."""

    async def fill(pairs: Sequence) -> None:
        pass

    space = Space(num_vectors)
    initial = [*space.equals, *space.alone]
    if propose is propose_cmaes:
        propose = partial(propose, num_initial=len(initial), population=plan.get("batch", 8))
    stage = Stage(
        Plan(space, tuple(range(NUM_PROMPTS)), budget, seed=seed, **plan),
        propose,
        fill,
        surface.scores,
        [],
    )
    best = asyncio.run(stage.run(initial))
    return surface.top - surface.rate(best.candidate.weights)


KINDS: dict[str, tuple[Callable, dict[str, Any]]] = {
    "random, whole": (propose_random, {"is_raced": False}),
    "random, raced": (propose_random, {}),
    "tpe, whole": (propose_tpe, {"is_raced": False}),
    "tpe, raced": (propose_tpe, {}),
    "tpe, raced, batches of 4": (propose_tpe, {"batch": 4}),
    "cmaes, whole": (propose_cmaes, {"is_raced": False}),
    "cmaes, raced": (propose_cmaes, {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare optimisers on known surfaces.")
    parser.add_argument("-n", type=int, default=100, help="surfaces")
    parser.add_argument("--vectors", type=int, nargs="+", default=[2, 3, 5])
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    rows = []
    for num_vectors in args.vectors:
        for budget in args.budgets:
            for name in args.kinds:
                propose, plan = KINDS[name]
                regrets = [
                    find(Surface(num_vectors, s), num_vectors, budget, s, propose, **plan)
                    for s in range(args.n)
                ]
                mean, error = np.mean(regrets), np.std(regrets, ddof=1) / np.sqrt(args.n)
                row = {"vectors": num_vectors, "budget": budget, "search": name}
                row |= {"regret": round(float(mean), 4), "standard_error": round(float(error), 4)}
                rows.append(row)
                print(row, flush=True)
    if args.output:
        fields = {"surfaces": args.n, "prompts": NUM_PROMPTS, "rows": rows}
        args.output.write_text(json.dumps(fields, indent=2) + "\n")


if __name__ == "__main__":
    main()
