"""Whether units came to the variants as they were dealt: sample ratio mismatch. Pure.

Assumed: each new unit is dealt independently, with the shares of the version under which it came.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from outfitter.statistics.tails import chi_square_tail

ALPHA = 0.001
"""The chance that units dealt rightly are ever called a mismatch, over all peeks together."""
_STRENGTHS = (100.0, 10_000.0, 1_000_000.0)
"""How near to the planned shares the alternatives are: shares that differ by about 1/√strength."""


@dataclass(frozen=True)
class Stretch:
    """The units that came while the shares were the same.

    shares: of each variant, which sum to 1. counts: new units of each; a missing one has none.
    """

    shares: Mapping[str, float]
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Balance:
    """log_e: of the evidence for a mismatch, valid at any peek. p_value: the classical
    chi-square's, valid if this were the only look. expected: units per variant."""

    counts: Mapping[str, int]
    expected: Mapping[str, float]
    log_e: float
    p_value: float

    @property
    def is_mismatch(self) -> bool:
        """Whether the evidence reaches 1/ALPHA."""
        return self.log_e >= -math.log(ALPHA)


def balance(stretches: Sequence[Stretch]) -> Balance:
    """Of all stretches together, each against its own shares."""
    counts: dict[str, int] = {}
    expected: dict[str, float] = {}
    for stretch in stretches:
        num_units = sum(stretch.counts.values())
        for key in {**stretch.shares, **stretch.counts}:
            counts[key] = counts.get(key, 0) + stretch.counts.get(key, 0)
            expected[key] = expected.get(key, 0.0) + stretch.shares.get(key, 0.0) * num_units
    log_e = sum(log_e_value(stretch) for stretch in stretches)
    return Balance(counts, expected, log_e, chi_square_p(counts, expected))


def log_e_value(stretch: Stretch) -> float:
    """The log Bayes factor of Dirichlet-multinomial alternatives against the planned shares.

    Lindon & Malek, "Anytime-valid inference for multinomial count data" (arXiv 2011.03567);
    here the mean over three strengths of the prior Dirichlet(strength · shares), so that a leak of
    1 % and one of half are both found soon. An e-process, and so are products over stretches.
    """
    counts = [stretch.counts.get(key, 0) for key in stretch.shares]
    if sum(stretch.counts.values()) > sum(counts):
        return math.inf  # somebody came to a variant without a share
    dealt = [(n, share) for n, share in zip(counts, stretch.shares.values(), strict=True) if n]
    if any(share <= 0 for _, share in dealt):
        return math.inf
    logs = [_log_bayes_factor(dealt, strength) for strength in _STRENGTHS]
    top = max(logs)
    return top + math.log(sum(math.exp(one - top) for one in logs) / len(logs))


def chi_square_p(counts: Mapping[str, int], expected: Mapping[str, float]) -> float:
    """Pearson's; 1 where nothing can be said."""
    wanted = {key: value for key, value in expected.items() if value > 0 or counts.get(key)}
    if len(wanted) < 2:
        return 1.0
    if any(value <= 0 for value in wanted.values()):
        return 0.0
    statistic = sum((counts.get(key, 0) - want) ** 2 / want for key, want in wanted.items())
    return chi_square_tail(statistic, len(wanted) - 1)


def _log_bayes_factor(dealt: Sequence[tuple[int, float]], strength: float) -> float:
    total = sum(n for n, _ in dealt)
    result = math.lgamma(strength) - math.lgamma(strength + total)
    for n, share in dealt:
        prior = strength * share
        result += math.lgamma(prior + n) - math.lgamma(prior) - n * math.log(share)
    return result
