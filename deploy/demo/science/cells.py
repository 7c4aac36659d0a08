"""Cells: one task vector with what it is asked; each is measured once and kept in a journal."""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from chat import Chat, first_clause
from skills import GRADES, QUESTIONS

from science.answers import Question, greedy_answers
from science.likelihood import NUM_TEXTS, Likelihood
from science.probes import Probe
from science.resident import Resident
from taskvectors.vector import TaskVector

ALL_PROBES = ("style", "numbers", "control")
NUM_EXAMPLES = 3
MAX_PLAIN_WORDS = 16

Facts = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One measurement. build: the vector and what else is known of it; None is the base.

    texts: kinds of text whose likelihood is taken.
    """

    name: str
    experiment: str
    build: Callable[[], tuple[TaskVector | None, Facts]]
    probes: tuple[str, ...] = ALL_PROBES
    texts: tuple[str, ...] = ()
    facts: Facts = field(default_factory=dict)


class Journal:
    """A JSON line a cell; what stands in it is not measured again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: dict[str, Facts] = {row["cell"]: row for row in map(json.loads, lines)}

    def add(self, row: Facts) -> None:
        """Keep `row`."""
        self.rows[row["cell"]] = row
        with self.path.open("a") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def rounds(work: Path) -> dict[str, Facts]:
    """Every cell of all journals; passes of later rounds of prompts follow the first's."""
    files = sorted(work.glob("journal_*.jsonl"), key=lambda f: int(f.stem.split("_")[1]))
    rows: dict[str, Facts] = {}
    for file in files:
        for name, row in Journal(file).rows.items():
            passes = rows.setdefault(name, {**row, "passes": {}})["passes"]
            for column, more in row["passes"].items():
                passes[column] = passes.get(column, "") + more
    return rows


class Bench:
    """A resident base and everything that a vector may be asked on it."""

    def __init__(
        self, resident: Resident, probes: Mapping[str, Probe], work: Path, document: Path
    ) -> None:
        self.resident = resident
        self.probes = probes
        self.likelihood = Likelihood(resident.chat, self._plain(work), document)

    def measure_all(self, cells: Iterable[Cell], journal: Journal) -> None:
        """Measure the cells that the journal lacks, in order."""
        for cell in cells:
            if cell.name not in journal.rows:
                row = self.measure(cell)
                journal.add(row)
                rates = {c: p.count("1") for c, p in row["passes"].items() if "1" in p}
                print(f"{cell.name}: {rates} {row['nll']} {row['seconds']} s", flush=True)

    def measure(self, cell: Cell) -> Facts:
        """Passes as strings of 0 and 1, one character a prompt, in the order of the split."""
        start = time.monotonic()
        vector, facts = cell.build()
        built = time.monotonic()
        asked = [self.probes[name] for name in cell.probes]
        with self.resident.wearing(vector) as model:
            answers = ask(model, self.resident.chat, asked)
            nll = {kind: round(self.likelihood.nll(model, kind), 4) for kind in cell.texts}
        return {
            "cell": cell.name,
            "experiment": cell.experiment,
            **cell.facts,
            **facts,
            "size": {} if vector is None else size(vector),
            "passes": {
                c: p for probe in asked for c, p in graded(probe, answers[probe.name]).items()
            },
            "nll": nll,
            "examples": {
                probe.name: dict(
                    zip(probe.prompts[:NUM_EXAMPLES], answers[probe.name], strict=False)
                )
                for probe in asked
            },
            "build_seconds": round(built - start, 1),
            "seconds": round(time.monotonic() - start, 1),
        }

    def _plain(self, work: Path) -> dict[str, str]:
        """The base's own short answers to held-out questions, kept in `work`."""
        cache = work / "plain_test_answers.json"
        if not cache.exists():
            prompts = QUESTIONS.test[: 2 * NUM_TEXTS]
            questions = [Question(p, 32, lambda _p, _a: False) for p in prompts]
            answers = greedy_answers(self.resident.model, self.resident.chat, questions)
            short = {
                p: first_clause(a, MAX_PLAIN_WORDS) for p, a in zip(prompts, answers, strict=True)
            }
            kept = {p: a for p, a in short.items() if a is not None}
            cache.write_text(json.dumps(kept, indent=1, ensure_ascii=False))
        plain: dict[str, str] = json.loads(cache.read_text())
        return dict(list(plain.items())[:NUM_TEXTS])


def ask(model: Any, chat: Chat, probes: Sequence[Probe]) -> dict[str, list[str]]:
    """All probes in one batch; the answers by probe."""
    questions = [Question(p, probe.limit, probe.settled) for probe in probes for p in probe.prompts]
    answers = iter(greedy_answers(model, chat, questions))
    return {probe.name: list(islice(answers, len(probe.prompts))) for probe in probes}


def graded(probe: Probe, answers: list[str]) -> dict[str, str]:
    """`{"json": "1101…", …}`."""
    return {
        column: "".join(
            str(int(GRADES[column].grade(p, a)))
            for p, a in zip(probe.prompts, answers, strict=True)
        )
        for column in probe.columns
    }


def size(vector: TaskVector) -> Facts:
    """How large the delta is: norm, and root mean square of its nonzero entries."""
    energy, count, numel = 0.0, 0, 0
    for delta in vector.parameters.values():
        dense = delta.to_dense()
        energy += float(np.square(dense, dtype=np.float64).sum())
        count += int(np.count_nonzero(dense))
        numel += dense.size
    rms = math.sqrt(energy / count) if count else 0.0
    return {
        "norm": round(math.sqrt(energy), 5),
        "rms_of_nonzero": round(rms, 8),
        "nonzero": count,
        "density": round(float(count / numel), 6) if numel else 0.0,
    }
