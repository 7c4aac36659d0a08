"""The statistics of the science bench, against SciPy and by hand."""

import numpy as np
import pytest

from deploy.demo.science.intervals import either, mean_drop, ranks, rate_of, spearman, wilson

SEED = 11


@pytest.mark.parametrize("asked", [1, 7, 40, 200])
def test_wilson_is_scipys(asked: int) -> None:
    """Wilson's interval equals SciPy's for every count, none and all passed included."""
    stats = pytest.importorskip("scipy.stats")
    for passed in range(asked + 1):
        wanted = stats.binomtest(passed, asked).proportion_ci(0.95, "wilson")
        assert wilson(passed, asked) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


def test_spearman_is_scipys_with_equal_values() -> None:
    """Rank correlation equals SciPy's, with many equal values."""
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(SEED)
    for _ in range(50):
        x, y = rng.integers(0, 5, (2, 10)).astype(float)
        wanted = stats.spearmanr(x, y).statistic
        assert spearman(x, y) == pytest.approx(wanted, nan_ok=True)


def test_equal_values_share_their_rank() -> None:
    """Equal values get the mean of the ranks that they fill."""
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]


def test_a_prompt_passes_where_any_grader_passes() -> None:
    """`either` joins graders prompt by prompt."""
    assert either("1100", "0101") == "1101"
    assert rate_of("1101")["rate"] == 0.75


def test_a_drop_is_the_mean_over_both_skills() -> None:
    """The drop averages both skills, and its interval holds it."""
    drop, (low, high) = mean_drop([("1111", "0000"), ("1100", "1100")])
    assert drop == 0.5
    assert low <= drop <= high


def test_no_change_is_no_drop() -> None:
    """Where nothing changes the interval is one point."""
    assert mean_drop([("1010", "1010")]) == (0.0, (0.0, 0.0))
