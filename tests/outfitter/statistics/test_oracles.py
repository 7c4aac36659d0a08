"""Our figures are those of gbstats, scipy and statsmodels (golden.json, made by oracle.py)."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from outfitter.statistics import asymptotic
from outfitter.statistics.balance import Stretch, balance, log_e_value
from outfitter.statistics.contrast import contrast
from outfitter.statistics.moments import Moments
from outfitter.statistics.tails import chi_square_tail, normal_quantile

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden.json").read_text())
close = pytest.approx


def _sequence(case: dict[str, Any]) -> tuple[float, float, list[float], float]:
    control, variant = (Moments(**given) for given in case["moments"])
    found = contrast(control, variant)
    assert found is not None
    alpha = case["alpha"]
    reach = found.error * asymptotic.z_of(found.n, alpha)
    log_e = asymptotic.log_e_value(found.value / found.error, found.n, alpha)
    p_value = math.exp(-max(0.0, log_e))
    return found.value, found.variance, [found.value - reach, found.value + reach], p_value


@pytest.mark.parametrize("kind", ["means", "ratios"])
def test_confidence_sequences_are_those_of_gbstats(kind: str) -> None:
    """Effect, variance, interval and always-valid p-value agree to float error."""
    for case in GOLDEN[kind]:
        effect, variance, interval, p_value = _sequence(case)
        assert effect == close(case["effect"], rel=1e-8, abs=1e-12)
        assert variance == close(case["variance"], rel=1e-8)
        assert interval == close(case["interval"], rel=1e-7)
        assert p_value == close(case["p_value"], rel=1e-6)


def test_a_covariate_takes_off_what_gbstats_and_a_regression_take_off() -> None:
    """θ is of other weights than theirs: they agree but for terms that vanish with n."""
    for case in GOLDEN["covariates"]:
        effect, variance, _, _ = _sequence(case)
        n = case["moments"][0]["n"]
        error = variance**0.5
        for other in (case, case["regression"]):
            assert abs(effect - other["effect"]) < 2 * error / n**0.5
            assert variance == close(other["variance"], rel=5 / n**0.5)


def test_sample_ratio_mismatch_is_that_of_gbstats_and_scipy() -> None:
    for case in GOLDEN["balances"]:
        keys = [str(place) for place in range(len(case["counts"]))]
        stretch = Stretch(
            dict(zip(keys, case["shares"], strict=True)),
            dict(zip(keys, case["counts"], strict=True)),
        )
        found = balance([stretch])
        assert found.p_value == close(case["scipy"], rel=1e-9)
        assert found.p_value == close(case["gbstats"], rel=1e-9)
        assert log_e_value(stretch) == close(case["log_e"], rel=1e-6, abs=1e-6)


def test_chi_square_tails_are_those_of_scipy() -> None:
    for case in GOLDEN["tails"]:
        assert chi_square_tail(case["x"], case["df"]) == close(case["tail"], rel=1e-9, abs=1e-300)
    assert normal_quantile(0.975) == close(1.959963984540054)
