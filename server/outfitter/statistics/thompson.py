"""Thompson sampling: traffic is shared by the chance of each variant to be the best. Pure."""

from collections.abc import Mapping

import numpy as np

from outfitter.statistics.contrast import Estimate

FLOOR = 0.05
"""Of the traffic, for each variant: whoever is behind keeps being measured, and can come back."""
_DRAWS = 20_000


def chances(
    arms: Mapping[str, Estimate], *, is_better_up: bool, seed: int, num_draws: int = _DRAWS
) -> dict[str, float]:
    """The chance of each to be the best, its true value being N(value, variance).

    That is the posterior for a flat prior and many units (Russo et al., "A tutorial on Thompson
    sampling", 1707.02038, section 5.1); for a proportion the Beta posterior of Beta(1, 1) tends to
    the same. The same seed draws the same.
    """
    draws = np.random.default_rng(seed).standard_normal((num_draws, len(arms)))
    values = np.array([arm.value for arm in arms.values()])
    errors = np.array([arm.error for arm in arms.values()])
    sign = 1.0 if is_better_up else -1.0
    best = np.argmax(sign * (values + errors * draws), axis=1)
    wins = np.bincount(best, minlength=len(arms)) / num_draws
    return {key: float(share) for key, share in zip(arms, wins, strict=True)}


def weights(chance: Mapping[str, float], floor: float = FLOOR) -> dict[str, float]:
    """Shares that follow the chances, none below `floor`, rounded to whole percents, sum 1.

    Rounding keeps the shares, and with them the buckets, where they are while little is learnt.
    """
    assert 0 <= floor * len(chance) <= 1
    free = 1 - floor * len(chance)
    exact = {key: 100 * (floor + free * share) for key, share in chance.items()}
    whole = {key: int(value) for key, value in exact.items()}
    by_remainder = sorted(exact, key=lambda key: whole[key] - exact[key])
    for key in by_remainder[: 100 - sum(whole.values())]:
        whole[key] += 1
    return {key: value / 100 for key, value in whole.items()}
