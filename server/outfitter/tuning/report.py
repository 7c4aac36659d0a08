"""What a search found, with figures: as JSON, and in a sentence that promises no more."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from outfitter.tuning.intervals import Interval, difference, mean_of
from outfitter.tuning.race import NUM_FINALISTS
from outfitter.tuning.space import Candidate
from outfitter.tuning.tuner import Found, Step, Task, Tuner


@dataclass(frozen=True)
class Row:
    """One loadout. lead: by how much the tuned one is better on the held-out prompts, paired."""

    what: str
    candidate: Candidate
    loadout: str
    search: float
    held_out: Interval
    lead: Interval | None


@dataclass(frozen=True)
class Report:
    """Everything that is told of a search."""

    rows: list[Row]
    found: Found
    num_search: int
    num_held_out: int

    @property
    def tuned(self) -> Row:
        """The best that was found on the search's prompts."""
        return self.rows[0]

    @property
    def equal(self) -> Row:
        """The better of the equal weights, judged on the search's prompts like the tuned one."""
        return next(row for row in self.rows[1:] if row.candidate == self.found.equal)

    @property
    def sentence(self) -> str:
        """The honest score against equal weights."""
        lead = self.equal.lead
        assert lead is not None
        if self.tuned.candidate == self.equal.candidate:
            return f"equal weights ({self.equal.loadout}) are the best that was found"
        bounds = f"95 % from {lead.low:+.3f} to {lead.high:+.3f}"
        where = f"on {self.num_held_out} held-out prompts ({bounds})"
        against = f"equal weights ({self.equal.loadout})"
        if lead.low > 0:
            return f"tuned beats {against} by {lead.mean:+.3f} {where}"
        if lead.high < 0:
            return f"tuned is worse than {against}: {lead.mean:+.3f} {where}; keep equal weights"
        return f"tuned is not shown to beat {against}: {lead.mean:+.3f} {where}"


def report_of(task: Task, tuner: Tuner, found: Found) -> Report:
    """Score every row on the held-out prompts, the tuned one first."""
    seed, tuned = task.plan.seed, tuner.held_out(found.best)
    rows: list[Row] = []
    for what, candidate in found.rows(task):
        scores = tuner.held_out(candidate)
        searched = tuner.searched(candidate)
        rows.append(
            Row(
                what,
                candidate,
                candidate.describe(task.labels),
                sum(searched) / len(searched),
                mean_of(scores, seed),
                difference(tuned, scores, seed) if rows else None,
            )
        )
    return Report(rows, found, len(task.plan.order), len(task.split.held_out))


def to_json(
    report: Report, task: Task, question: Mapping[str, Any], run: Mapping[str, Any]
) -> dict[str, Any]:
    """All of it. question: as the journal has it; run: how it was run, and how long it took."""
    spent = {name: round(n / report.num_search, 2) for name, n in report.found.spent.items()}
    return {
        "result": report.sentence,
        "task_vectors": report.tuned.candidate.task_vectors(task.names),
        "question": dict(question),
        "budget": task.plan.budget,
        "batch": task.plan.batch,
        "rungs": list(task.plan.rungs),
        "finalists": NUM_FINALISTS,
        "prompts": {"search": report.num_search, "held_out": report.num_held_out},
        "intervals": "95 %; Wilson's for scores of 0 and 1, else bootstrap; leads paired bootstrap",
        "run": dict(run),
        "spent_evaluations": spent,
        "rows": [_row(row) for row in report.rows],
        "candidates": {
            name: [_step(step, report, task) for step in steps]
            for name, steps in report.found.steps.items()
        },
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "what": row.what,
        "loadout": row.loadout,
        **row.candidate.to_json(),
        "search": round(row.search, 5),
        "held_out": row.held_out.to_json(),
        "tuned_is_better_by": row.lead and row.lead.to_json(),
    }


def _step(step: Step, report: Report, task: Task) -> dict[str, Any]:
    return {
        "loadout": step.candidate.describe(task.labels),
        **step.candidate.to_json(),
        "expected": round(step.score, 5),
        "prompts": step.asked,
        "after_evaluations": round(step.at / report.num_search, 3),
    }
