"""Graders of answers."""

from pathlib import Path
from typing import Any

import pytest

from outfitter.config import InvalidConfig
from outfitter.tuning.graders import GraderFailed, find_grader
from outfitter.tuning.prompts import Prompt


def prompt(expected: Any = None, text: str = "q") -> Prompt:
    return Prompt(({"role": "user", "content": text},), {"prompt": text, "expected": expected})


@pytest.mark.parametrize(
    ("name", "expected", "answer", "score"),
    [
        ("exact", "Paris", " Paris\n", 1),
        ("exact", "Paris", "paris", 0),
        ("exact", ["a", "b"], "b", 1),
        ("exact", 7, "7", 1),
        ("contains", "paris", "It is PARIS.", 1),
        ("contains", ["Rome", "Bern"], "in bern", 1),
        ("contains", "Rome", "Bern", 0),
        ("regex", "^[A-Z ]+$", "YES SIR", 1),
        ("regex", "^[A-Z ]+$", "yes", 0),
        ("number", 1234.5, "so it is $1,234.50.", 1),
        ("number", "12", "12 and then 13", 0),
        ("number", -3, "x = -3", 1),
        ("number", 5, "none at all", 0),
        ("number", 1.5e3, "1.5e3", 1),
        ("json_schema", {"type": "object", "required": ["a"]}, '{"a": 1}', 1),
        ("json_schema", {"type": "object", "required": ["a"]}, '{"b": 1}', 0),
        ("json_schema", '{"type": "array"}', "[]", 1),
        ("json_schema", {}, "no json", 0),
    ],
)
def test_built_in_graders(name: str, expected: Any, answer: str, score: float) -> None:
    """What passes and what does not."""
    assert find_grader(name).grade(prompt(expected), answer) == score


def test_an_expectation_for_all_is_taken_where_a_prompt_has_none() -> None:
    """And its own first; without either the prompt is named before anything is asked."""
    grader = find_grader("contains", "yes")
    assert grader.grade(prompt(), "oh yes") == 1
    assert grader.grade(prompt("no"), "oh yes") == 0
    grader.check([prompt()])
    with pytest.raises(InvalidConfig, match=r'prompt 2 .* has no "expected"'):
        find_grader("exact").check([prompt("a"), prompt()])


@pytest.mark.parametrize(("name", "rule"), [("regex", "("), ("json_schema", {"type": "nothing"})])
def test_a_rule_that_is_none_is_told_before_anything_is_asked(name: str, rule: object) -> None:
    """With the prompt that has it."""
    with pytest.raises(InvalidConfig, match="'q'"):
        find_grader(name).check([prompt(rule)])


def own(folder: Path, body: str) -> str:
    path = folder / "mine.py"
    path.write_text(body)
    return str(path)


def test_a_function_gets_what_it_names(tmp_path: Path) -> None:
    """By the names of its parameters, in a file or a module."""
    body = "def grade(answer, row, weight=2):\n    return weight * len(answer) + row['more']\n"
    path = own(tmp_path, body)
    asked = Prompt(({"role": "user", "content": "q"},), {"more": 1})
    assert find_grader(path).grade(asked, "abc") == 7
    assert find_grader(f"{path}:grade").grade(asked, "") == 1


def test_a_changed_file_is_another_grader(tmp_path: Path) -> None:
    """So a journal of the old one is not gone on with."""
    first = find_grader(own(tmp_path, "def grade(answer):\n    return 1\n")).identity
    assert find_grader(own(tmp_path, "def grade(answer):\n    return 0\n")).identity != first


@pytest.mark.parametrize(
    "result", ["None", "'a'", "float('nan')", "[1]", "1 / 0", "answer.nothing"]
)
def test_what_is_no_score_is_never_one(tmp_path: Path, result: str) -> None:
    """The search stops; the answer does not count as 0."""
    grader = find_grader(own(tmp_path, f"def grade(answer):\n    return {result}\n"))
    with pytest.raises(GraderFailed, match="'q'"):
        grader.grade(prompt(), "x")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("exakt", "choose exact, contains"),
        ("nowhere_at_all:grade", "does not load"),
        ("json:nothing", "no function .nothing"),
        ("missing.py", "no such file"),
    ],
)
def test_what_cannot_be_found_is_told(name: str, words: str) -> None:
    """And what there is."""
    with pytest.raises(InvalidConfig, match=words):
        find_grader(name)


def test_a_function_that_wants_more_is_refused(tmp_path: Path) -> None:
    """With the names that there are; a file that raises is told too."""
    with pytest.raises(InvalidConfig, match=r"asks for .reply.*prompt, answer"):
        find_grader(own(tmp_path, "def grade(reply):\n    return 1\n"))
    with pytest.raises(InvalidConfig, match="does not load: ValueError: no"):
        find_grader(own(tmp_path, "raise ValueError('no')\n"))
