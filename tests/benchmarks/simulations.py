"""Simulations of experiments: false verdicts, power, mismatches, rollbacks. All are seeded."""

import math
from typing import Any

import numpy as np

from outfitter.control.experiments.compare import Terms, compare
from outfitter.control.experiments.decide import GUARDRAIL_BREACHED, findings
from outfitter.control.experiments.definition import Definition
from outfitter.control.experiments.measures import Metric
from outfitter.control.experiments.report import Standing, report
from outfitter.statistics import asymptotic, proportions
from outfitter.statistics.balance import ALPHA, Stretch, balance
from outfitter.statistics.contrast import contrast
from outfitter.statistics.proportions import Counts
from outfitter.statistics.tails import normal_quantile
from tests.benchmarks import drawing
from tests.benchmarks.drawing import Array, Draw

PEEKS, SEED, ALPHA_OF_ALL = 50, 7, 0.05


def rate(hits: int, num: int) -> dict[str, Any]:
    """With the 95 % interval of Wilson."""
    p, z = hits / num, 1.96
    centre = (p + z * z / (2 * num)) / (1 + z * z / num)
    reach = z * math.sqrt(p * (1 - p) / num + z * z / (4 * num * num)) / (1 + z * z / num)
    interval = [round(max(0.0, centre - reach), 4), round(centre + reach, 4)]
    return {"rejected": hits, "experiments": num, "rate": p, "interval_95": interval}


def null_mean(
    draw: Draw, num: int, last: int, num_variants: int = 2, controls: int = 1
) -> dict[str, Any]:
    """Peeked at from MIN_UNITS to `last` units per variant; all variants are the same.

    controls: units of the control for each of a variant's.
    """
    rng = np.random.default_rng(SEED)
    at = drawing.peeks(asymptotic.MIN_UNITS, last, PEEKS)
    ours = naive = 0
    for size in drawing.batches(num, 200):
        arms = [drawing.arm(rng, draw, at * controls, size)]
        arms += [drawing.arm(rng, draw, at, size) for _ in range(num_variants - 1)]
        for run in range(size):
            pairs = [(arms[0][run], other[run]) for other in arms[1:]]
            ours += _is_ever_refuted(pairs, ALPHA_OF_ALL / len(pairs))
            naive += _is_ever_significant(pairs, ALPHA_OF_ALL / len(pairs))
    return {**rate(ours, num), "naive_t_test_at_each_peek": naive / num, "last_units": last}


def null_returning(kind: str, num: int, num_units: int = 400) -> dict[str, Any]:
    """The same units at all peeks, with more and more requests."""
    rng = np.random.default_rng(SEED)
    ours = 0
    for size in drawing.batches(num, 200):
        arms = [drawing.returning(rng, size, num_units, PEEKS, kind) for _ in range(2)]
        if kind == "mean":
            pairs = [(arms[0][run], arms[1][run]) for run in range(size)]
            ours += sum(_is_ever_refuted([pair], ALPHA_OF_ALL) for pair in pairs)
        else:
            ours += int(_ever(_evidence(arms[0], arms[1], None)).sum())
    return rate(ours, num)


def null_proportion(
    p: float, num: int, last: int, num_variants: int = 2, answered: tuple[float, float] = (1, 1)
) -> dict[str, Any]:
    """answered: the share of each variant's units that have the metric; the test sees no others."""
    rng = np.random.default_rng(SEED)
    at = drawing.peeks(10, last, PEEKS)
    share = 0.5 if answered == (1, 1) else None
    hit = np.zeros(num, bool)
    control = _counted(rng, p, at, num, answered[0])
    for _ in range(num_variants - 1):
        variant = _counted(rng, p, at, num, answered[1])
        alpha = ALPHA_OF_ALL / (num_variants - 1)
        hit |= _ever(_evidence(control, variant, share), alpha)
    return {**rate(int(hit.sum()), num), "last_units": last}


def power_mean(num: int, fixed_n: int) -> dict[str, Any]:
    """An effect that a t-test finds in 80 % at `fixed_n` units per variant, looking once."""
    effect = (normal_quantile(0.975) + normal_quantile(0.8)) * math.sqrt(2 / fixed_n)
    rng = np.random.default_rng(SEED)
    at = drawing.peeks(asymptotic.MIN_UNITS, 4 * fixed_n, 200)
    once = int(np.searchsorted(at, fixed_n))
    found: list[float] = []
    fixed = 0
    for size in drawing.batches(num, 100):
        arms = [drawing.arm(rng, drawing.normal(shift), at, size) for shift in (0.0, effect)]
        for run in range(size):
            pair = (arms[0][run], arms[1][run])
            fixed += _is_ever_significant([(pair[0][once : once + 1], pair[1][once : once + 1])])
            place = _first_refuted(pair, ALPHA_OF_ALL)
            found.append(math.inf if place is None else float(at[place]))
    return _power(np.array(found), fixed / num, fixed_n)


def power_proportion(p: float, num: int, fixed_n: int) -> dict[str, Any]:
    """The same for proportions, with the exact test."""
    z = normal_quantile(0.975) + normal_quantile(0.8)
    effect = z * math.sqrt(2 * p * (1 - p) / fixed_n)
    rng = np.random.default_rng(SEED)
    at = drawing.peeks(10, 4 * fixed_n, 200)
    once = int(np.searchsorted(at, fixed_n))
    control = _counted(rng, p, at, num, 1)
    variant = _counted(rng, p + effect, at, num, 1)
    fixed = sum(
        _is_ever_significant([(control[run, once : once + 1], variant[run, once : once + 1])])
        for run in range(num)
    )
    crossed = _evidence(control, variant, 0.5) >= -math.log(ALPHA_OF_ALL)
    found = np.where(crossed.any(axis=1), at[crossed.argmax(axis=1)], np.inf)
    return {**_power(found, fixed / num, fixed_n), "p": p, "effect": effect}


def _power(found: Array, fixed: float, fixed_n: int) -> dict[str, Any]:
    return {
        "fixed_horizon_units": fixed_n,
        "fixed_horizon_power": fixed,
        "power_at_that_many": float((found <= fixed_n).mean()),
        "power_at_twice": float((found <= 2 * fixed_n).mean()),
        "power_at_four_times": float((found <= 4 * fixed_n).mean()),
        "median_units_over_fixed": float(np.median(found)) / fixed_n,
        "experiments": len(found),
    }


def mismatch(num: int, leak: float, last: int) -> dict[str, Any]:
    """How often, and after how many units in all; leak: of one variant's units, lost."""
    rng = np.random.default_rng(SEED)
    at = drawing.peeks(100, last, PEEKS)
    control = drawing.successes(rng, 0.5, at, num)
    dealt = np.asarray(at) - control
    lost = rng.binomial(np.diff(dealt, axis=1, prepend=0), leak).cumsum(axis=1)
    variant = dealt - lost
    found = np.full(num, np.inf)
    for run in range(num):
        for place in range(len(at)):
            counts = {"control": int(control[run, place]), "warm": int(variant[run, place])}
            if balance([Stretch({"control": 0.5, "warm": 0.5}, counts)]).is_mismatch:
                found[run] = at[place]
                break
    told = rate(int(np.isfinite(found).sum()), num)
    return {
        **told,
        **_quantiles(found, "units", (50, 90)),
        "leak": leak,
        "last_units": last,
        "alpha": ALPHA,
    }


GUARDED = {
    "name": "sim",
    "variants": [
        {"key": "control", "model": "base"},
        {"key": "warm", "task_vectors": {"warm": 1}},
    ],
    "control": "control",
    "metrics": [{"name": "helpful", "kind": "proportion"}],
    "primary": "helpful",
    "guardrails": [{"metric": "latency_s", "margin": 0.1}, {"metric": "error", "margin": 0.5}],
}


def rollback(num: int, last: int, slower: float = 1.0, errors: float = 0.01) -> dict[str, Any]:
    """The verdict of everything together: helpful answers, latency, errors; warm is `slower`."""
    rng = np.random.default_rng(SEED)
    definition = Definition.parse(GUARDED)
    at = drawing.peeks(20, last, PEEKS)
    latency = [
        drawing.arm(rng, drawing.log_normal(0.6, math.log(factor)), at, num)
        for factor in (1.0, slower)
    ]
    error = [_counted(rng, p, at, num, 1) for p in (0.01, errors)]
    helpful = [_counted(rng, 0.6, at, num, 1) for _ in range(2)]
    found = np.full(num, np.inf)
    for run in range(num):
        for place, units in enumerate(at):
            sums = {"latency_s": latency, "error": error, "helpful": helpful}
            own = {
                name: {
                    key: drawing.moments(arms[k][run, place])
                    for k, key in enumerate(("control", "warm"))
                }
                for name, arms in sums.items()
            }
            counts = {"control": int(units), "warm": int(units)}
            stretch = Stretch({"control": 0.5, "warm": 0.5}, counts)
            told = findings(report(Standing(definition, 0.0, [stretch], own)))
            if any(one.kind == GUARDRAIL_BREACHED for one in told):
                found[run] = 2 * units
                break
    planted = {"latency_factor": slower, "errors": errors, "last_exposures": 2 * last}
    quantiles = _quantiles(found, "exposures", (50, 95, 100))
    return {**rate(int(np.isfinite(found).sum()), num), **quantiles, **planted}


def _quantiles(found: Array, what: str, percents: tuple[int, ...]) -> dict[str, Any]:
    """None where so many of them never found anything."""
    ordered = np.sort(found)
    places = {q: math.ceil(q / 100 * len(found)) - 1 for q in percents}
    values = {f"{what}_{q}": float(ordered[place]) for q, place in places.items()}
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def _is_ever_refuted(pairs: list[tuple[Array, Array]], alpha: float) -> bool:
    return any(_first_refuted(pair, alpha) is not None for pair in pairs)


def _first_refuted(pair: tuple[Array, Array], alpha: float) -> int | None:
    """The first peek whose comparison, as the product makes it, says that there is an effect."""
    metric, terms = Metric("m", "feedback", "mean", "up", covariate="z"), Terms(alpha, 0.5)
    for place in range(len(pair[0])):
        both = (drawing.moments(pair[0][place]), drawing.moments(pair[1][place]))
        found = compare(metric, "warm", both, terms)
        if found.is_above() or found.is_below():
            return place
    return None


def _is_ever_significant(pairs: list[tuple[Array, Array]], alpha: float = ALPHA_OF_ALL) -> bool:
    """By a test for one look, taken at each of them."""
    z = normal_quantile(1 - alpha / 2)
    for control, variant in pairs:
        for a, b in zip(control, variant, strict=True):
            found = contrast(drawing.moments(a), drawing.moments(b))
            if found is not None and found.variance > 0 and abs(found.value) > z * found.error:
                return True
    return False


def _counted(rng: np.random.Generator, p: float, at: Array, num: int, answered: float) -> Array:
    """[experiments, peeks, 10] of a proportion, of the units that have it."""
    sums = np.zeros((num, len(at), len(drawing.FIELDS)))
    n = np.broadcast_to(at, (num, len(at)))
    if answered < 1:
        n = drawing.successes(rng, answered, at, num)
    x = rng.binomial(np.diff(n, axis=1, prepend=0), p).cumsum(axis=1)
    for place, value in enumerate((n, x, x, n, n, x)):
        sums[:, :, place] = value
    return sums


def _evidence(control: Array, variant: Array, share: float | None) -> Array:
    """[experiments, peeks]: log e-values; share: None to take it from the data, as `compare`."""
    shape = control.shape[:2]
    rows = [one.reshape(-1, one.shape[-1]) for one in (control, variant)]
    found = []
    for start in range(0, len(rows[0]), 5_000):
        a, b = (one[start : start + 5_000] for one in rows)
        units = a[:, 0] + b[:, 0]
        observed = np.clip(b[:, 0] / np.maximum(units, 1), 0.001, 0.999)
        taken = np.full(len(a), share) if share is not None else observed
        counts = Counts(a[:, 1], a[:, 0]), Counts(b[:, 1], b[:, 0])
        found.append(proportions.log_e_value(*counts, taken))
    return np.concatenate(found).reshape(shape)


def _ever(log_e: Array, alpha: float = ALPHA_OF_ALL) -> Array:
    return np.asarray((log_e >= -math.log(alpha)).any(axis=1))
