"""docs/dialects.md says what the code does."""

import json
import re
from pathlib import Path

import pytest

from taskvectors.methods import METHODS
from taskvectors.spec import parse_task_vectors
from tests.taskvectors.merge import dialects


def test_the_page_is_what_the_code_gives(tmp_path: Path) -> None:
    """Every table of the page; `python -m tests.taskvectors.merge.dialects` writes them anew."""
    page = dialects.PAGE.read_text("utf-8")
    assert dialects.rendered(page, dialects.make_base(tmp_path)) == page


def test_an_outdated_page_is_noticed(tmp_path: Path) -> None:
    """A changed share or default is put right, so the page would differ."""
    page = dialects.PAGE.read_text("utf-8")
    changed = page.replace("| **0** |", "| 0.1 % |", 1).replace("`0.2` |", "`0.3` |", 1)
    assert changed.count("0.1 %") == page.count("0.1 %") + 1
    assert dialects.rendered(changed, dialects.make_base(tmp_path)) == page


@pytest.mark.parametrize("weights", dialects.WEIGHTS)
def test_what_is_said_to_be_the_same_is(weights: tuple[float, ...], tmp_path: Path) -> None:
    """Each method differs nowhere from the implementation whose dialect it is."""
    same = {
        ("`linear`", "mergekit `task_arithmetic`"),
        ("`linear`", "PEFT `task_arithmetic`"),
        ("`ties`", "mergekit `ties`"),
        ("`ties_peft`", "PEFT `ties`"),
        ("`dare_linear`", "PEFT `dare_linear`"),
        ("`della` with `rescale: l1`", "mergekit `della`"),
        ("`breadcrumbs`", "mergekit `breadcrumbs`"),
    }
    case = dialects.example(weights)
    checked = set()
    for row in dialects.comparisons(dialects.make_base(tmp_path)):
        if (row.left, row.right) in same:
            checked.add((row.left, row.right))
            share = dialects.share_that_differs(row.merge_left(case), row.merge_right(case))
            assert share == 0
    assert checked == same


def test_examples_parse() -> None:
    """Every loadout on the page is one that a request may say."""
    blocks = re.findall(r"```json\n(.*?)```", dialects.PAGE.read_text("utf-8"), re.DOTALL)
    loadouts = [parse_task_vectors(json.loads(block)) for block in blocks]
    assert len(loadouts) >= 5
    assert {loadout.method for loadout in loadouts} >= {"linear", "ties", "dare_linear"}


def test_every_method_and_parameter_is_on_the_page() -> None:
    """The generated tables leave nothing out."""
    page = dialects.PAGE.read_text("utf-8")
    for method in METHODS.values():
        assert f"| `{method.name}` |" in page
        assert all(f"`{parameter.name}`" in page for parameter in method.parameters)
