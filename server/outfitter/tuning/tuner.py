"""The whole search: baselines, optimiser, random search at the same cost, and the honest score."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from outfitter.client import GatewayError
from outfitter.tuning.asking import Asker, NoAnswer
from outfitter.tuning.graders import Grader
from outfitter.tuning.journal import Journal
from outfitter.tuning.optimiser import PROPOSERS
from outfitter.tuning.prompts import Prompt, Split
from outfitter.tuning.space import Candidate
from outfitter.tuning.stage import NothingFound, Plan, Stage, Tried

SEARCH, RANDOM = "search", "random"

Show = Callable[[int, int, str], None]
"""`show(done, total, what)`: answers that count, answers in all."""


@dataclass(frozen=True)
class Task:
    """What is searched for. names: of the vectors, as requests name them; labels: as people do."""

    names: tuple[str, ...]
    labels: tuple[str, ...]
    prompts: Sequence[Prompt]
    split: Split
    grader: Grader
    plan: Plan
    optimiser: str = "tpe"
    is_compared: bool = True
    """With the random search."""


@dataclass(frozen=True)
class Step:
    """A candidate of a stage: what it is expected to score, after how many answers."""

    candidate: Candidate
    score: float
    at: int
    asked: int


@dataclass
class Found:
    """What a search found. scores: of each candidate's key, by prompt."""

    best: Candidate
    equal: Candidate
    alone: Candidate
    random: Candidate | None
    steps: dict[str, list[Step]] = field(default_factory=dict)
    spent: dict[str, int] = field(default_factory=dict)

    def rows(self, task: Task) -> list[tuple[str, Candidate]]:
        """All that is scored on the held-out prompts, with what each is."""
        space = task.plan.space
        labels = dict(zip(space.alone, task.labels, strict=True))
        rows: list[tuple[str, Candidate]] = [("tuned", self.best)]
        if self.random is not None:
            rows.append(("random search", self.random))
        rows += [("equal weights", one) for one in space.equals]
        rows += [(f"{labels[one]} alone", one) for one in space.alone if one not in space.equals]
        return [*rows, ("base", space.base)]


class Tuner:
    """Runs one task against one gateway; what the journal knows is not asked again."""

    def __init__(self, task: Task, asker: Asker, journal: Journal, show: Show) -> None:
        self._task, self._asker, self._journal = task, asker, journal
        self._show = show
        self._done = 0
        self._what = ""
        space = task.plan.space
        self._vital = {space.base, *space.equals, *space.alone}
        self.asked_seconds = 0.0

    async def run(self) -> Found:
        """Raises GatewayError, GraderFailed, NothingFound; run again it goes on."""
        plan, space = self._task.plan, self._task.plan.space
        initial = [*space.equals, *space.alone]
        search = self._stage(SEARCH, self._task.optimiser)
        best = await search.run([*dict.fromkeys(initial)])
        stages = {SEARCH: search}
        rivals: Tried | None = None
        if self._task.is_compared:
            stages[RANDOM] = self._stage(RANDOM, "random")
            rivals = await stages[RANDOM].run()
        self._what = "baselines"
        await self._fill([(space.base, plan.order)])
        found = Found(
            best.candidate,
            self._best_of(space.equals),
            self._best_of(space.alone),
            None if rivals is None else rivals.candidate,
            {name: self._steps(stage) for name, stage in stages.items()},
            {name: stage.spent for name, stage in stages.items()},
        )
        self._what = "held-out prompts"
        chosen = [*dict.fromkeys(candidate for _, candidate in found.rows(self._task))]
        self._vital |= {*chosen}
        await self._fill([(candidate, self._task.split.held_out) for candidate in chosen])
        for candidate in chosen:
            self.held_out(candidate)
        return found

    def held_out(self, candidate: Candidate) -> list[float]:
        """Scores on the held-out prompts, in their order; raises NothingFound where it failed."""
        return self._whole(candidate, self._task.split.held_out)

    def searched(self, candidate: Candidate) -> list[float]:
        """The same on the prompts of the search."""
        return self._whole(candidate, self._task.plan.order)

    def _whole(self, candidate: Candidate, prompts: Sequence[int]) -> list[float]:
        scores = self._scores(candidate, prompts)
        if scores is None:
            shown = candidate.describe(self._task.labels)
            raise NothingFound(f"{shown} has no score: {self._journal.failed[candidate.key]}")
        return scores

    def _steps(self, stage: Stage) -> list[Step]:
        """What a stage tried; no expectation lies outside of what was ever scored."""
        scores = [score for one in self._journal.scores.values() for score in one.values()]
        low, high = min(scores), max(scores)
        known = {one.candidate: one.score for one in stage.known()}
        return [
            Step(one.candidate, min(max(score, low), high), one.at, one.asked)
            for one in stage.tried
            if (score := known.get(one.candidate)) is not None
        ]

    def _best_of(self, candidates: Sequence[Candidate]) -> Candidate:
        return max(candidates, key=lambda one: (sum(self.searched(one)), -one.size))

    def _stage(self, name: str, proposer: str) -> Stage:
        def begin(batch: list[Candidate]) -> None:
            self._journal.begin(name, batch)
            scores = [one.score for one in stage.known() if one.score is not None]
            self._what = f"{name}, best {max(scores):.3f}" if scores else name

        self._what = name
        batches = [*self._journal.batches(name)]
        propose = PROPOSERS[proposer]
        stage = Stage(self._task.plan, propose, self._fill, self._scores, batches, begin)
        return stage

    def _scores(self, candidate: Candidate, prompts: Sequence[int]) -> list[float] | None:
        if candidate.key in self._journal.failed:
            return None
        known = self._journal.scores.get(candidate.key, {})
        return [known[prompt] for prompt in prompts]

    async def _fill(self, pairs: Sequence[tuple[Candidate, Sequence[int]]]) -> None:
        """Ask and grade what is missing, all at once. What fails has no score at all.

        Raises GatewayError, and notes no failure, where the base is not answered either, so that
        the gateway is to blame, and for a loadout that the report cannot do without.
        """
        missing = [
            (candidate, prompt)
            for candidate, prompts in dict(pairs).items()
            if candidate.key not in self._journal.failed
            for prompt in prompts
            if prompt not in self._journal.scores.get(candidate.key, {})
        ]
        self._tell(sum(len(prompts) for _, prompts in pairs) - len(missing))
        start, failed = time.monotonic(), dict[Candidate, str]()
        try:
            async with asyncio.TaskGroup() as group:
                for candidate, prompt in missing:
                    group.create_task(self._one(candidate, prompt, failed))
        except BaseExceptionGroup as errors:
            raise _first(errors) from errors
        finally:
            self._spend(time.monotonic() - start if missing else 0.0)
        if failed and len(failed) == len({candidate for candidate, _ in missing}):
            await self._check_gateway()
        if vital := next((one for one in failed if one in self._vital), None):
            shown = vital.describe(self._task.labels)
            raise GatewayError(f"{shown} was not answered: {failed[vital]}")
        for candidate, why in failed.items():
            self._journal.fail(candidate, why)

    async def _check_gateway(self) -> None:
        try:
            await self._asker.ask(self._task.prompts[0], None)
        except NoAnswer as error:
            raise GatewayError(f"neither loadouts nor the base are answered: {error}") from error

    async def _one(self, candidate: Candidate, prompt: int, failed: dict[Candidate, str]) -> None:
        asked = self._task.prompts[prompt]
        try:
            vectors = candidate.task_vectors(self._task.names)
            answer = await self._asker.ask(asked, vectors, seed=prompt)
        except NoAnswer as error:
            failed.setdefault(candidate, str(error))
        else:
            self._journal.score(candidate, prompt, self._task.grader.grade(asked, answer))
        self._tell(1)

    def _spend(self, seconds: float) -> None:
        if seconds:
            self.asked_seconds += seconds
            self._journal.spend(seconds)
            self._journal.sync()

    def _tell(self, answers: int) -> None:
        self._done += answers
        self._show(self._done, self.total, self._what)

    @property
    def total(self) -> int:
        """Answers that a run counts, known ones included, but for what races save at their end."""
        task, space = self._task, self._task.plan.space
        stages = task.plan.answers * (2 if task.is_compared else 1)
        rows = 2 + task.is_compared + len(space.equals) + len(space.alone)
        return stages + len(task.plan.order) + rows * len(task.split.held_out)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
