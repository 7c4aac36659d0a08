"""When a candidate is asked no further: races on the same prompts. Pure.

Scores are in the order in which prompts are asked, which is the same for all: a candidate's are a
prefix of it. What two candidates are compared by are differences on the prompts both were asked,
so that hard and easy prompts cancel (Maron & Moore 1994, "Hoeffding Races", with the normal bound
of paired differences of F-Race, Birattari et al. 2002).
"""

import math
from collections.abc import Sequence

Z = 1.2816
"""One-sided 90 %: a candidate that is as good as the best is dropped by one look in ten."""
MIN_RUNG = 4
NUM_FINALISTS = 4


def rungs(num_prompts: int, *, is_raced: bool = True) -> tuple[int, ...]:
    """How many prompts a candidate has been asked after each look: a quarter, then half of all.

    Only finalists are asked the rest, so that the last choice is on prompts that chose nothing
    before. All at once where there is no race.
    """
    if not is_raced:
        return (num_prompts,)
    looks = {min(num_prompts, max(MIN_RUNG, math.ceil(num_prompts / share))) for share in (4, 2)}
    return tuple(sorted(looks))


def is_behind(scores: Sequence[float], best: Sequence[float], z: float = Z) -> bool:
    """Whether the upper bound of the mean difference to the best lies below 0.

    Equal differences say little when they are few: their variance counts as one prompt's worth.
    """
    n = min(len(scores), len(best))
    differences = [a - b for a, b in zip(scores, best, strict=False)]
    mean = sum(differences) / n if n else 0.0
    if mean >= 0 or n < 2:
        return False
    variance = sum((d - mean) ** 2 for d in differences) / (n - 1)
    scale = max(abs(d) for d in differences)
    floor = scale**2 / n
    return mean + z * math.sqrt(max(variance, floor) / n) < 0


def estimate(scores: Sequence[float], reference: Sequence[float]) -> float:
    """The mean score to expect on all prompts of the longer `reference`.

    The reference's mean there, plus the mean difference on the prompts that both were asked; the
    candidate's own mean where it was asked as many.
    """
    n = len(scores)
    if n >= len(reference):
        return sum(scores) / n
    own, other = sum(scores) / n, sum(reference[:n]) / n
    return sum(reference) / len(reference) + own - other


def leader(scores: Sequence[Sequence[float]]) -> int:
    """Position of the best: the highest mean among those asked most; the first of equals."""
    most = max(len(one) for one in scores)
    means = [sum(one) / most if len(one) == most else -math.inf for one in scores]
    return means.index(max(means))
