"""Figures of gbstats, scipy and statsmodels on drawn data, for test_oracles.py.

In an environment of its own: `pip install gbstats scipy statsmodels`, then
`python tests/outfitter/statistics/oracle.py > tests/outfitter/statistics/golden.json`.
"""

import json
import platform
from importlib.metadata import version

import numpy as np
import scipy.stats
import statsmodels.api as sm
from gbstats.frequentist.tests import SequentialConfig, SequentialTwoSidedTTest
from gbstats.models.statistics import (
    RatioStatistic,
    RegressionAdjustedStatistic,
    SampleMeanStatistic,
    compute_theta,
)
from gbstats.utils import check_srm

SEED = 20_201_107


def sums(x, y, z):
    pairs = {"x": x, "xx": x * x, "y": y, "yy": y * y, "xy": x * y}
    pairs |= {"z": z, "zz": z * z, "xz": x * z, "yz": y * z}
    return {"n": len(x), **{name: float(value.sum()) for name, value in pairs.items()}}


def sample(x):
    return SampleMeanStatistic(n=len(x), sum=float(x.sum()), sum_squares=float((x * x).sum()))


def sequential(a, b, alpha):
    test = SequentialTwoSidedTTest(a, b, SequentialConfig(alpha=alpha, difference_type="absolute"))
    return {
        "effect": float(test.point_estimate),
        "variance": float(test.variance),
        "interval": [float(end) for end in test.confidence_interval],
        "p_value": float(test.p_value),
    }


def mean_cases(rng):
    for n, shift, alpha in [(120, 0.3, 0.05), (5_000, 0.05, 0.01), (40_000, 0.0, 0.05)]:
        a, b = rng.lognormal(0, 1, n), rng.lognormal(shift, 1, n + n // 3)
        given = [sums(x, np.ones_like(x), 0 * x) for x in (a, b)]
        yield {"alpha": alpha, "moments": given, **sequential(sample(a), sample(b), alpha)}


def ratio_cases(rng):
    for n, alpha in [(150, 0.05), (8_000, 0.05), (30_000, 0.001)]:
        arms, given = [], []
        for more in (0.0, 0.02):
            y = rng.geometric(0.3, n).astype(float)
            x = rng.binomial(y.astype(int), np.clip(rng.beta(2, 5, n) + more, 0, 1)).astype(float)
            given.append(sums(x, y, 0 * x))
            products = float((x * y).sum())
            arms.append(RatioStatistic(n, sample(x), sample(y), products))
        yield {"alpha": alpha, "moments": given, **sequential(*arms, alpha)}


def covariate_cases(rng):
    """gbstats takes one θ of both variants together; statsmodels' is of each its own slope."""
    for n, alpha in [(400, 0.05), (20_000, 0.05)]:
        xs, zs = [], []
        for shift in (0.0, 0.1):
            z = rng.gamma(2, 1, n)
            xs.append(0.8 * z + rng.normal(shift, 1, n))
            zs.append(z)
        arms = [
            RegressionAdjustedStatistic(n, sample(x), sample(z), float((x * z).sum()), 0.0)
            for x, z in zip(xs, zs, strict=True)
        ]
        theta = compute_theta(*arms)
        for arm in arms:
            arm.theta = theta
        x, z = np.concatenate(xs), np.concatenate(zs)
        treated = np.repeat([0.0, 1.0], n)
        centred = z - z.mean()
        design = np.column_stack([np.ones(2 * n), treated, centred, centred * treated])
        fit = sm.OLS(x, design).fit(cov_type="HC1")
        given = [sums(x, np.ones_like(x), z) for x, z in zip(xs, zs, strict=True)]
        yield {
            "alpha": alpha,
            "moments": given,
            **sequential(*arms, alpha),
            "regression": {"effect": float(fit.params[1]), "variance": float(fit.bse[1] ** 2)},
        }


def balance_cases():
    for counts, shares in [
        ([5_012, 4_988], [0.5, 0.5]),
        ([500_000, 490_000], [0.5, 0.5]),
        ([1_003, 498, 499], [0.5, 0.25, 0.25]),
        ([90, 210, 300, 400], [0.1, 0.2, 0.3, 0.4]),
    ]:
        expected = np.array(shares) * sum(counts)
        strengths = [100.0, 10_000.0, 1_000_000.0]
        multinomial = scipy.stats.multinomial.logpmf(counts, sum(counts), shares)
        mixtures = [
            scipy.stats.dirichlet_multinomial.logpmf(
                counts, strength * np.array(shares), sum(counts)
            )
            for strength in strengths
        ]
        log_e = scipy.special.logsumexp(np.array(mixtures) - multinomial) - np.log(len(strengths))
        yield {
            "counts": counts,
            "shares": shares,
            "gbstats": float(check_srm(counts, shares)),
            "scipy": float(scipy.stats.chisquare(counts, expected).pvalue),
            "log_e": float(log_e),
        }


def tails():
    for df in (1, 2, 3, 4, 7, 15):
        for x in (0.001, 0.5, 3.84, 20.0, 200.0):
            yield {"df": df, "x": x, "tail": float(scipy.stats.chi2.sf(x, df))}


def main():
    rng = np.random.default_rng(SEED)
    names = ("gbstats", "scipy", "statsmodels", "numpy")
    print(
        json.dumps(
            {
                "versions": {name: version(name) for name in names},
                "python": platform.python_version(),
                "seed": SEED,
                "means": list(mean_cases(rng)),
                "ratios": list(ratio_cases(rng)),
                "covariates": list(covariate_cases(rng)),
                "balances": list(balance_cases()),
                "tails": list(tails()),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
