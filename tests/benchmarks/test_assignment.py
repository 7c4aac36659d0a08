"""The committed figures on assignment are those that the documentation tells."""

import json
from pathlib import Path

FOLDER = Path(__file__).parent
RESULT = json.loads((FOLDER / "results" / "assignment.json").read_text())
PAGE = (FOLDER.parents[1] / "docs" / "experiments.md").read_text()


def test_a_million_units_are_spread_evenly_and_independently() -> None:
    """No kind of units, in no experiment, tells the hash from chance."""
    assert RESULT["units"] == 1_000_000
    for kind in RESULT["kinds"].values():
        for judged in (kind["uniformity"], kind["independence"]):
            assert judged["ks_p"] > 0.001
            assert judged["least_p"] > 0.001 / judged["tests"]


def test_nothing_moves_that_need_not_and_growthbook_agrees() -> None:
    """As the page says."""
    moves, agreement = RESULT["moves"], RESULT["agreement"]
    assert moves["moved"] == moves["least"]
    assert agreement["otherwise"] == 0
    least = min(
        judged["ks_p"]
        for kind in RESULT["kinds"].values()
        for judged in (kind["uniformity"], kind["independence"])
    )
    told = f"{moves['changes']} random changes of weights and coverage moved {moves['moved']:,}"
    assert f"{told} buckets, which is the least" in PAGE
    assert f"none of the six p-values is below {int(least * 100) / 100:g}" in PAGE
