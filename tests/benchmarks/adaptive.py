"""Simulations of experiments whose traffic follows their results."""

from typing import Any

import numpy as np

from outfitter.control.experiments.compare import Terms, compare
from outfitter.control.experiments.measures import Metric
from outfitter.statistics import proportions
from outfitter.statistics.contrast import estimate
from outfitter.statistics.moments import Moments
from outfitter.statistics.proportions import Counts
from outfitter.statistics.thompson import chances, weights
from tests.benchmarks import drawing
from tests.benchmarks.simulations import ALPHA_OF_ALL, PEEKS, SEED, rate


def null_adaptive(p: float, num: int, last: int) -> dict[str, Any]:
    """Thompson sampling moves the traffic at every peek; each arm has its own interval."""
    rng = np.random.default_rng(SEED)
    steps = np.diff(np.concatenate([[0], drawing.peeks(40, 2 * last, PEEKS)]))
    hits = 0
    for run in range(num):
        won, units = np.zeros(2), np.zeros(2)
        share = 0.5
        for place, step in enumerate(steps):
            new = rng.binomial(step, share)
            came = np.array([step - new, new])
            won += rng.binomial(came, p)
            units += came
            counts = [Counts(won[k], units[k]) for k in (0, 1)]
            if place % 5 == 4 and _arms_differ(counts):
                hits += 1
                break
            arms = {str(k): estimate(_ones(won[k], units[k])) for k in (0, 1)}
            known = {key: one for key, one in arms.items() if one is not None and one.variance > 0}
            if len(known) == 2:
                share = weights(chances(known, is_better_up=True, seed=run, num_draws=500))["1"]
    return {**rate(hits, num), "last_units": last, "peeks": PEEKS // 5}


def null_adaptive_mean(num: int, last: int) -> dict[str, Any]:
    """The same for a mean that is as skewed as a latency; compared as the product does."""
    rng = np.random.default_rng(SEED)
    steps = np.diff(np.concatenate([[0], drawing.peeks(40, 2 * last, PEEKS)]))
    metric, terms = Metric("m", "feedback", "mean", "up"), Terms(ALPHA_OF_ALL, None, True)
    hits = 0
    for run in range(num):
        arms, share = [Moments(), Moments()], 0.5
        for step in steps:
            new = int(rng.binomial(step, share))
            for k, came in enumerate((step - new, new)):
                arms[k] += Moments.of(rng.lognormal(0, 1, came))
            found = compare(metric, "warm", (arms[0], arms[1]), terms)
            if found.is_above() or found.is_below():
                hits += 1
                break
            known = {str(k): one for k, arm in enumerate(arms) if (one := estimate(arm))}
            if len(known) == 2:
                share = weights(chances(known, is_better_up=True, seed=run, num_draws=500))["1"]
    return {**rate(hits, num), "last_units": last}


def _arms_differ(counts: list[Counts]) -> bool:
    lower, upper = proportions.arms_interval(counts[0], counts[1], ALPHA_OF_ALL)
    return lower > 0 or upper < 0


def _ones(won: float, units: float) -> Moments:
    return Moments(int(units), won, won, units, units, won)
