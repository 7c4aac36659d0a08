"""The whole search, with answers that are made up: what fails is told, and never scored."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from outfitter.client import GatewayError
from outfitter.tuning.asking import NoAnswer
from outfitter.tuning.graders import GraderFailed, find_grader
from outfitter.tuning.journal import Journal
from outfitter.tuning.prompts import Prompt, split_prompts
from outfitter.tuning.report import report_of
from outfitter.tuning.space import Candidate, Space
from outfitter.tuning.stage import Plan
from outfitter.tuning.tuner import Task, Tuner

NAMES = ("a", "b")
PROMPTS = [Prompt(({"role": "user", "content": str(i)},), {"expected": 1.0}) for i in range(24)]


class Engine:
    """Answers with the weight of `a`; fails for what it is told to."""

    def __init__(self) -> None:
        self.fails_for: set[float] = set()
        self.is_down = False
        self.num_asked = 0

    async def ask(self, prompt: Prompt, vectors: Mapping[str, Any] | None, seed: int = 0) -> str:
        self.num_asked += 1
        weights = {one["name"]: one["weight"] for one in (vectors or {"vectors": []})["vectors"]}
        weight = weights.get("a", 0.0)
        if self.is_down or weight in self.fails_for:
            raise NoAnswer("6 tries failed")
        return f"{weight}"


def task(tmp_path: Path, body: str = "return -abs(float(answer) - 0.7)") -> Task:
    path = tmp_path / "mine.py"
    path.write_text(f"def grade(answer):\n    {body}\n")
    split = split_prompts(PROMPTS, 0.5, 0)
    plan = Plan(Space(2), split.search, budget=12, seed=1)
    return Task(NAMES, NAMES, PROMPTS, split, find_grader(str(path)), plan, "random")


def run(task: Task, engine: Engine, journal: Journal) -> tuple[Tuner, Any]:
    tuner = Tuner(task, engine, journal, lambda done, total, what: None)
    return tuner, asyncio.run(tuner.run())


def test_the_report_is_of_the_held_out_prompts(tmp_path: Path) -> None:
    """Every row, with the tuned one's lead; equal weights are the better of the two."""
    asked = task(tmp_path)
    with Journal(tmp_path / "j", {}) as journal:
        report = report_of(asked, *run(asked, Engine(), journal))
    assert [row.what for row in report.rows] == [
        *("tuned", "random search", "equal weights", "equal weights"),
        *("a alone", "b alone", "base"),
    ]
    assert report.equal.candidate == Candidate((0.5, 0.5))
    assert report.tuned.held_out.mean == pytest.approx(0, abs=0.1)
    assert "tuned beats equal weights (a 0.5, b 0.5)" in report.sentence


def test_one_loadout_that_fails_has_no_score(tmp_path: Path) -> None:
    """The others go on, and it is noted why."""
    asked, engine = task(tmp_path), Engine()
    with Journal(tmp_path / "j", {}) as journal:
        _, found = run(asked, engine, journal)
    engine.fails_for = {found.best.weights[0]}
    with Journal(tmp_path / "k", {}) as journal:
        _, second = run(asked, engine, journal)
        assert second.best != found.best
        assert found.best.key in journal.failed
        assert "6 tries" in journal.failed[found.best.key]
        assert all(found.best != step.candidate for step in second.steps["search"])


def test_a_baseline_that_fails_stops_the_search(tmp_path: Path) -> None:
    """And is asked again by the next run: its failure is not noted."""
    asked, engine = task(tmp_path), Engine()
    engine.fails_for = {0.5}
    with Journal(tmp_path / "j", {}) as journal:
        with pytest.raises(GatewayError, match=r"a 0.5, b 0.5 was not answered"):
            run(asked, engine, journal)
        assert not journal.failed
        engine.fails_for = set()
        run(asked, engine, journal)


def test_a_gateway_that_is_down_blames_no_loadout(tmp_path: Path) -> None:
    """What was answered before is kept; the next run goes on."""
    asked, engine = task(tmp_path), Engine()
    engine.is_down = True
    with Journal(tmp_path / "j", {}) as journal:
        with pytest.raises(GatewayError, match="neither loadouts nor the base"):
            run(asked, engine, journal)
        assert (journal.failed, journal.num_scores) == ({}, 0)


def test_a_grader_that_fails_stops_the_search(tmp_path: Path) -> None:
    """No answer counts as 0 for it."""
    asked = task(tmp_path, "return 1 / 0")
    with Journal(tmp_path / "j", {}) as journal:
        with pytest.raises(GraderFailed, match="ZeroDivisionError"):
            run(asked, Engine(), journal)
        assert journal.num_scores == 0


def test_what_is_known_is_not_asked(tmp_path: Path) -> None:
    """Neither by the next run nor by another stage of the same one."""
    asked, engine = task(tmp_path), Engine()
    with Journal(tmp_path / "j", {}) as journal:
        run(asked, engine, journal)
        assert engine.num_asked == journal.num_scores
        run(asked, engine, journal)
        assert engine.num_asked == journal.num_scores
