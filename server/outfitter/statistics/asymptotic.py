"""Asymptotic confidence sequences: intervals that hold at all peeks together. Pure.

Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas, "Time-uniform central limit theory and asymptotic
confidence sequences", arXiv 2103.06476v7, Theorem 2.2 (equation 9). Let n units be seen, let the
estimate's variance be v, and σ² = n·v what one unit adds. Then

    estimate ± σ · sqrt( 2(n·ρ² + 1) / (n·ρ)² · log( sqrt(n·ρ² + 1) / α ) )

covers the truth at every n ≥ MIN_UNITS at once, with a chance of 1 − α. Assumed: units are
independent of each other and alike, with a finite variance (strictly: a little more than two
moments), and there are enough of them that their sum moves like a Brownian motion. Where a unit
comes back, its observations may depend on each other; if they do so positively the estimate's path
is smoother than a Brownian motion's and the bound holds all the more (Slepian's inequality).
"""

import math

TUNING_UNITS = 5_000
"""The number of units, of both variants together, at which the interval is tightest.

It has to be fixed before anything is seen. GrowthBook's default as well, so that its analysis of
the same data has the same interval. What is lost elsewhere is little: against an interval tuned to
the very n, it is 2 % wider at 2,500 or 12,500 units, 11 % at 1,000, 7 % at 50,000, 17 % at 500,000.
"""
MIN_UNITS = 100
"""Per variant. Before, nothing asymptotic is said: the paper's bound begins at a first peek, whose
error goes to zero as that is later. By simulation (tests/benchmarks/results/inference.json) this
suffices for log-normal latencies, ratios, and units that come back."""


def rho_of(alpha: float, tuning_units: float = TUNING_UNITS) -> float:
    """The ρ whose interval is tightest at `tuning_units`; 2103.06476v7, equation 161."""
    twice = -2 * math.log(alpha)
    return math.sqrt((twice + math.log(twice + 1)) / tuning_units)


def z_of(n: float, alpha: float, tuning_units: float = TUNING_UNITS) -> float:
    """How many standard errors the interval reaches to each side at n units; n > 0."""
    spread = n * rho_of(alpha, tuning_units) ** 2
    return math.sqrt(2 * (spread + 1) / spread * math.log(math.sqrt(spread + 1) / alpha))


def log_e_value(z: float, n: float, alpha: float, tuning_units: float = TUNING_UNITS) -> float:
    """The evidence that is inverted: the log of the normal mixture, at z standard errors from it.

    It is ≥ log(1/α) exactly where |z| ≥ `z_of(n, alpha)`. `alpha` only tunes the mixture.
    """
    spread = n * rho_of(alpha, tuning_units) ** 2
    return spread * z * z / (2 * (spread + 1)) - math.log(spread + 1) / 2
