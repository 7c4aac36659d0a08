"""Which combinations of parameters a test is run with."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest


def covering(**values: Sequence[Any]) -> tuple[tuple[str, ...], list[Any]]:
    """Arguments of `parametrize`: all combinations, of which some are enough by default.

    Those have every value of one parameter with every value of each other; the rest is `slow`.
    """
    cases = [dict(zip(values, case, strict=True)) for case in itertools.product(*values.values())]
    chosen = _chosen(cases)
    params = [
        pytest.param(*case.values(), marks=() if number in chosen else (pytest.mark.slow,))
        for number, case in enumerate(cases)
    ]
    return tuple(values), params


def _chosen(cases: Sequence[Mapping[str, Any]]) -> set[int]:
    """Greedily: always the one that brings most pairs which are not there yet."""
    pairs = [set(itertools.combinations([(k, repr(v)) for k, v in c.items()], 2)) for c in cases]
    left, chosen = set().union(*pairs), set[int]()
    while left:
        best = max(range(len(cases)), key=lambda number: len(pairs[number] & left))
        chosen.add(best)
        left -= pairs[best]
    return chosen
