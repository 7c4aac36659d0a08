"""Moments: additive; values and errors of means, ratios, contrasts and covariates."""

import math

import numpy as np
import pytest

from outfitter.statistics.contrast import Estimate, caution, contrast, estimate, pooled_spread
from outfitter.statistics.moments import Moments, total


def test_adding_moments_is_adding_units() -> None:
    generator = np.random.default_rng(1)
    x, y, z = generator.random((3, 50))
    parts = [Moments.of(x[k : k + 10], y[k : k + 10], z[k : k + 10]) for k in range(0, 50, 10)]
    whole = Moments.of(x, y, z)
    for name, value in vars(total(parts)).items():
        assert value == pytest.approx(getattr(whole, name))
    assert total([]) == Moments()


def test_nothing_is_estimated_from_less_than_two_units_or_without_a_denominator() -> None:
    assert math.isnan(Moments().value)
    assert estimate(Moments.of([1.0])) is None
    assert estimate(Moments.of([1.0, 2.0], [0.0, 0.0])) is None
    assert contrast(Moments.of([1.0]), Moments.of([1.0, 2.0])) is None


def test_the_error_of_a_ratio_is_that_of_many_repetitions() -> None:
    """Requests of one unit hang together; the error of a mean per request knows it."""
    generator = np.random.default_rng(2)
    values, errors = [], []
    for _ in range(400):
        counts = generator.geometric(0.3, 300)
        own = generator.normal(0, 1, 300)
        x = counts * own + np.sqrt(counts) * generator.normal(0, 0.1, 300)
        found = estimate(Moments.of(x, counts))
        assert found is not None
        values.append(found.value)
        errors.append(found.error)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.08)


def test_a_multiple_of_the_control_is_compared() -> None:
    control, variant = Moments.of([1.0, 2.0, 3.0]), Moments.of([2.0, 4.0, 6.0])
    found = contrast(control, variant, factor=1.5)
    assert found is not None
    assert found.value == pytest.approx(4 - 1.5 * 2)
    assert found.variance == pytest.approx(4 / 3 + 1.5**2 / 3)


def test_a_covariate_makes_the_error_less_and_biases_nothing() -> None:
    generator = np.random.default_rng(4)
    z = generator.normal(5, 2, (2, 4_000))
    x = z + generator.normal(0, 0.5, (2, 4_000)) + np.array([[0.0], [0.1]])
    plain = contrast(*(Moments.of(row) for row in x))
    adjusted = contrast(*(Moments.of(row, 1.0, other) for row, other in zip(x, z, strict=True)))
    assert plain is not None
    assert adjusted is not None
    assert adjusted.error < plain.error / 3
    assert adjusted.value == pytest.approx(0.1, abs=4 * adjusted.error)


def test_an_even_split_needs_no_caution_and_an_uneven_one_the_spread_of_all() -> None:
    """Few units that happen to be alike do not make a small error."""
    many, few = Estimate(1.0, 4 / 900, 900), Estimate(1.0, 1 / 100, 100)
    assert pooled_spread(many, few) == pytest.approx(3.7)
    own = 4 / 900 + 1 / 100
    assert caution(many, few) * own == pytest.approx(3.7 / 900 + 3.7 / 100)
    assert caution(few, many) == pytest.approx(caution(many, few))
    assert caution(many, Estimate(1.0, 9 / 100, 100)) == 1
    assert caution(Estimate(1.0, 0.1, 500), Estimate(1.0, 0.3, 500)) == pytest.approx(1)
