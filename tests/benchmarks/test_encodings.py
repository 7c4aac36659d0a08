"""The figures on sizes: measured again on a smaller parameter, bounded, and as documented."""

import json
from pathlib import Path

import pytest

from tests.benchmarks.encodings import (
    DENSITIES,
    RESULTS,
    VALUE_BITS,
    as_table,
    bytes_per_value,
    entropy_bound,
    measure,
    random_delta,
)

DOCS = Path(__file__).parents[2] / "docs" / "format.md"


def test_the_documented_table_is_the_measured_one() -> None:
    """docs/format.md shows what the committed result says."""
    rows = json.loads(RESULTS.read_text())["rows"]
    assert as_table(rows) in DOCS.read_text()


def test_the_committed_result_is_what_is_measured() -> None:
    """Ternary with a bitmap and int8 with gaps have the same size today, at the same shape."""
    rows = {(row["values"], row["index"]): row for row in json.loads(RESULTS.read_text())["rows"]}
    for density in (0.005, 0.05):
        delta = random_delta(density)
        for values, index in (("ternary", "bitmap"), ("int8", "u8"), ("bf16", "u16")):
            expected = rows[values, index]["bytes_per_value"][f"{density:g}"]
            assert round(bytes_per_value(delta, values, index), 4) == expected


def test_no_encoding_is_below_the_entropy() -> None:
    """Any of them would be a mistake in the arithmetic; auto is as small as the smallest."""
    shape = (512, 512)
    rows = {(row["values"], row["index"]): row["bytes_per_value"] for row in measure(shape)}
    for density in DENSITIES:
        delta = random_delta(density, shape)
        for values, bits in VALUE_BITS.items():
            sizes = [
                size[f"{density:g}"]
                for (mine, index), size in rows.items()
                if mine == values and index != "entropy bound"
            ]
            assert min(sizes) >= entropy_bound(density, bits)
            assert round(bytes_per_value(delta, values, "auto"), 4) == min(sizes)


def test_the_entropy_bound_of_a_fair_coin() -> None:
    """Half of all elements: two bits to tell where a value is, and its own."""
    assert entropy_bound(0.5, 16) == pytest.approx((2 + 16) / 8)
