"""The simulations of inference, with fewer experiments than `python -m tests.benchmarks.inference`.

Their seeds are fixed: a test that passes goes on to pass.
"""

import json

from tests.benchmarks import drawing, simulations
from tests.benchmarks.inference import RESULTS


def test_a_peeked_at_null_is_refuted_less_often_than_alpha() -> None:
    """Of means; a test for one look would be wrong about ten times as often as it says."""
    found = simulations.null_mean(drawing.log_normal(1.0), 200, 2_000)
    assert found["rate"] <= 0.05
    assert found["naive_t_test_at_each_peek"] > 0.25


def test_a_peeked_at_null_of_proportions_is_refuted_less_often_than_alpha() -> None:
    assert simulations.null_proportion(0.1, 500, 20_000)["rate"] <= 0.05
    halved = simulations.null_proportion(0.7, 500, 20_000, answered=(0.4, 0.2))
    assert halved["rate"] <= 0.05


def test_a_leak_of_one_percent_is_found() -> None:
    found = simulations.mismatch(20, 0.01, 5_000_000)
    assert found["rate"] == 1
    assert found["units_90"] < 3_000_000


def test_a_planted_regression_is_a_breach_soon() -> None:
    found = simulations.rollback(4, 5_000, slower=1.3)
    assert found["rate"] == 1
    assert found["exposures_100"] <= 3_000


def test_what_is_committed_keeps_its_promises() -> None:
    """Of the committed figures: every null at most alpha, all that was planted is found."""
    found = json.loads(RESULTS.read_text())["scenarios"]
    for name, scenario in found.items():
        if name.startswith("null/") or name in ("rollback/none planted", "mismatch/none"):
            assert scenario["rate"] <= 0.05, name
        elif name.startswith(("mismatch/", "rollback/")):
            assert scenario["rate"] == 1, name
