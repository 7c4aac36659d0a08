"""How evenly and how independently experiments assign, over a million units of several kinds.

    python -m tests.benchmarks.assignment -o tests/benchmarks/results/assignment.json

Uniformity: chi-square over the 10,000 buckets, for each experiment. Independence: chi-square of the
100 x 100 table of the hundredths of two experiments. Were the hash chance itself, the p-values of
each would be uniform from 0 to 1, which a Kolmogorov-Smirnov test judges.
"""

import argparse
import json
import uuid
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from growthbook import GrowthBook
from scipy import stats

from outfitter.control.experiments.allotment import deal
from outfitter.control.experiments.assign import Split, assign
from outfitter.control.experiments.growthbook import payload
from outfitter.control.experiments.hashing import NUM_BUCKETS
from taskvectors.bench.machine import shown_path, write_result
from tests.outfitter.experiments.many import buckets_of

NUM_UNITS = 1_000_000
NUM_EXPERIMENTS = 30
NUM_CHANGES = 200
SEED = 0
SHARES = {"control": 0.5, "a": 0.3, "b": 0.2}


def units() -> dict[str, np.ndarray]:
    """Of three kinds, [n] of dtype S each."""
    rng = np.random.default_rng(SEED)
    halves = rng.integers(0, 2**62, size=(NUM_UNITS, 2), dtype=np.int64).tolist()
    uuids = (uuid.UUID(int=high << 64 | low, version=4) for high, low in halves)
    return {
        "numbers": np.array([b"%d" % n for n in range(NUM_UNITS)]),
        "addresses": np.array([b"user%d@example.com" % n for n in range(NUM_UNITS)]),
        "uuids": np.array([str(one).encode() for one in uuids]),
    }


def judged(pvalues: Iterable[float]) -> dict[str, object]:
    """What the p-values of many tests say together."""
    values = np.array(list(pvalues))
    return {
        "tests": len(values),
        "least_p": float(values.min()),
        "share_below_0.05": float((values < 0.05).mean()),
        "ks_p": float(stats.kstest(values, "uniform").pvalue),
    }


def spread(found: np.ndarray) -> float:
    return float(stats.chisquare(np.bincount(found, minlength=NUM_BUCKETS)).pvalue)


def independence(one: np.ndarray, other: np.ndarray) -> float:
    table = np.bincount(one // 100 * 100 + other // 100, minlength=NUM_BUCKETS)
    return float(stats.chi2_contingency(table.reshape(100, 100)).pvalue)


def moves() -> dict[str, object]:
    """Buckets that change hands over random changes of weights and coverage, and the least."""
    rng = np.random.default_rng(SEED)
    allotment, moved, least = deal(SHARES, 0.5), 0, 0
    for _ in range(NUM_CHANGES):
        weights = rng.dirichlet(np.ones(len(SHARES)))
        mix = dict(zip(SHARES, weights.tolist(), strict=True))
        after = deal(mix, float(rng.uniform(0.1, 1)), allotment)
        pairs = zip(allotment.buckets, after.buckets, strict=True)
        moved += sum(new[0] is not None and new[0] != old[0] for old, new in pairs)
        before = allotment.counts
        least += sum(max(0, n - before.get(key, 0)) for key, n in after.counts.items())
        allotment = after
    return {"changes": NUM_CHANGES, "moved": moved, "least": least}


def agreement(num_units: int = 100_000) -> dict[str, object]:
    """Units that the `growthbook` library assigns otherwise, after a change of weights."""
    allotment = deal({"control": 0.2, "a": 0.3, "b": 0.5}, 0.9, deal(SHARES, 0.4))
    split = Split("acme/tone", "control", allotment)
    sdk = GrowthBook(
        features=payload("tone", split, {key: key for key in SHARES}, "id")["features"]
    )
    wrong = 0
    for number in range(num_units):
        sdk.set_attributes({"id": f"user-{number}"})
        wrong += sdk.eval_feature("tone").value != assign(split, f"user-{number}").variant
    return {"growthbook": version("growthbook"), "units": num_units, "otherwise": wrong}


def measure() -> dict[str, object]:
    """All of it, by the kind of units."""
    kinds: dict[str, object] = {}
    for kind, some in units().items():
        found = [buckets_of(f"acme/experiment-{n}", some) for n in range(NUM_EXPERIMENTS)]
        pairs = [(found[n], found[(n + 1) % NUM_EXPERIMENTS]) for n in range(NUM_EXPERIMENTS)]
        kinds[kind] = {
            "uniformity": judged(map(spread, found)),
            "independence": judged(independence(*pair) for pair in pairs),
        }
        print(kind, json.dumps(kinds[kind]))
    return kinds


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", type=Path, required=True)
    path = parser.parse_args().o
    result = {
        "what": "p-values of a million units' buckets, moves of buckets, agreement with growthbook",
        "command": f"python -m tests.benchmarks.assignment -o {shown_path(path)}",
        "seed": SEED,
        "units": NUM_UNITS,
        "experiments": NUM_EXPERIMENTS,
        "kinds": measure(),
        "moves": moves(),
        "agreement": agreement(),
    }
    write_result(path, result)
    print(json.dumps({key: result[key] for key in ("moves", "agreement")}))


if __name__ == "__main__":
    main()
