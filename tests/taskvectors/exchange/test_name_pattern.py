"""Patterns of module names, with the regular expression of PEFT as the oracle."""

import re
import time

import pytest

from taskvectors.errors import UnsupportedAdapter
from taskvectors.exchange.name_pattern import matches, parse_pattern

NAMES = ("q_proj", "xq_proj", "model.layers.1.attn.q_proj", "layers.1.k-v", "model.layersX1.v_proj")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "key",
    [
        "q_proj",
        "proj",
        "^q_proj",
        "^model.layers.1.attn.q_proj$",
        r".*\.q_proj",
        r"layers\.1.*",
        "layers.1.*.(q|v)_proj",
        r"layers.1.(attn\.q|v)_proj",
        "k-v",
        ".*",
        ".",
        "q$_proj",
    ],
)
def test_a_pattern_matches_where_peft_matches(key: str, name: str) -> None:
    """A whole name or its trailing components."""
    expected = re.match(rf"(.*\.)?({key})$", name) is not None
    assert matches(parse_pattern(key), name) == expected


@pytest.mark.parametrize(
    "key", ["", "(a+)+", "a|b", "[ab]", "a{9}", "(?=a)", r"\d", "a*", "é", "(|a)"]
)
def test_other_patterns_are_refused_by_name(key: str) -> None:
    """What could backtrack, or is no part of a name."""
    with pytest.raises(UnsupportedAdapter, match=re.escape(repr(key))):
        parse_pattern(key)


def test_many_wildcards_take_no_time() -> None:
    """Which would hang a regex engine that backtracks."""
    begin = time.monotonic()
    assert not matches(parse_pattern(".*a" * 200 + "b"), "a" * 1000)
    assert time.monotonic() - begin < 5
