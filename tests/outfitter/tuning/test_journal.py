"""The journal of a search."""

from pathlib import Path

import pytest

from outfitter.config import InvalidConfig
from outfitter.tuning.journal import Journal
from outfitter.tuning.space import Candidate

QUESTION = {"grader": "exact", "seed": 1, "space": {"weights": (0.0, 1.5)}}
ONE, TWO = Candidate((0.5, 1.0)), Candidate((1.0, 0.25), "ties", 0.5)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """Batches by stage, scores by candidate, failures, and the time that it took."""
    path = tmp_path / "j.jsonl"
    with Journal(path, QUESTION) as journal:
        journal.begin("search", [ONE, TWO])
        journal.score(ONE, 3, 0.5)
        journal.fail(TWO, "why")
        journal.spend(1.5)
        journal.begin("random", [ONE])
    with Journal(path, QUESTION) as journal:
        assert journal.batches("search") == [[ONE, TWO]]
        assert journal.batches("random") == [[ONE]]
        assert journal.scores == {ONE.key: {3: 0.5}}
        assert journal.failed == {TWO.key: "why"}
        assert (journal.num_scores, journal.seconds) == (1, 1.5)


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    """A crash in the middle of a line loses that line only; writing goes on after it."""
    path = tmp_path / "j.jsonl"
    with Journal(path, QUESTION) as journal:
        journal.score(ONE, 1, 1.0)
        journal.score(ONE, 2, 1.0)
    path.write_bytes(path.read_bytes()[:-7])
    with Journal(path, QUESTION) as journal:
        assert journal.scores == {ONE.key: {1: 1.0}}
        journal.score(ONE, 4, 0.0)
    with Journal(path, QUESTION) as journal:
        assert journal.scores == {ONE.key: {1: 1.0, 4: 0.0}}


def test_a_changed_question_is_refused(tmp_path: Path) -> None:
    """With what changed, then and now."""
    path = tmp_path / "j.jsonl"
    with Journal(path, QUESTION):
        pass
    with pytest.raises(
        InvalidConfig, match=r'grader is "exact" there and "contains" now; .*--journal'
    ):
        Journal(path, {**QUESTION, "grader": "contains"})
    with pytest.raises(InvalidConfig, match="seed is 1 there and null now"):
        Journal(path, {key: value for key, value in QUESTION.items() if key != "seed"})


@pytest.mark.parametrize(
    "content", [b"{}\n", b"hello\n", b"[1]\n", b'{"format":9,"question":{}}\n']
)
def test_another_file_is_never_written_to(tmp_path: Path, content: bytes) -> None:
    """Whatever it is."""
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(InvalidConfig, match=r"no journal|format 9"):
        Journal(path, QUESTION)
    assert path.read_bytes() == content


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    """In the middle of a file nothing is dropped silently."""
    path = tmp_path / "j.jsonl"
    with Journal(path, QUESTION) as journal:
        journal.score(ONE, 1, 1.0)
    path.write_bytes(path.read_bytes() + b'{"what": 1}\n')
    with pytest.raises(InvalidConfig, match="jsonl:3 cannot be read"):
        Journal(path, QUESTION)


def test_one_run_at_a_time(tmp_path: Path) -> None:
    """A second one is told."""
    path = tmp_path / "j.jsonl"
    with Journal(path, QUESTION), pytest.raises(InvalidConfig, match="another run writes"):
        Journal(path, QUESTION)
