"""One search at a given cost: batches of candidates that race on the same prompts, then finals."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from outfitter.tuning.optimiser import Known, Proposer
from outfitter.tuning.race import NUM_FINALISTS, estimate, is_behind, leader, rungs
from outfitter.tuning.space import Candidate, Space

Batches = list[list[Candidate]]
"""Of a stage, in order: what a journal knows of it."""


@dataclass(frozen=True)
class Plan:
    """How a stage spends what it has.

    order: the prompts of the search split as they are asked; budget: in evaluations, each as many
    answers as there are prompts; batch: candidates that are tried at once.
    """

    space: Space
    order: tuple[int, ...]
    budget: int
    batch: int = 8
    seed: int = 0
    is_raced: bool = True
    num_finalists: int = NUM_FINALISTS

    @property
    def answers(self) -> int:
        """What the budget buys."""
        return self.budget * len(self.order)

    @property
    def rungs(self) -> tuple[int, ...]:
        """How many prompts are asked at each look."""
        return rungs(len(self.order), is_raced=self.is_raced)

    @property
    def for_finals(self) -> int:
        """Answers that are kept for the last choice."""
        return self.num_finalists * (len(self.order) - self.rungs[-1])


@dataclass
class Tried:
    """A candidate of a stage. asked: prompts of the order that count for it; at: the answers
    that the stage had spent when it was asked last."""

    candidate: Candidate
    asked: int = 0
    at: int = 0
    has_failed: bool = False


Fill = Callable[[Sequence[tuple[Candidate, Sequence[int]]]], Awaitable[None]]
"""Answers and scores what is missing; afterwards `scores` knows it, or that it failed."""
Scores = Callable[[Candidate, Sequence[int]], list[float] | None]
"""Of a candidate on these prompts; None where it failed."""


@dataclass
class Stage:
    """A search by one proposer; nothing here reads a clock or rolls a die of its own.

    What it did before is done again from `batches`, with scores that are known, so that one that
    was stopped goes on from there.
    """

    plan: Plan
    propose: Proposer
    fill: Fill
    scores: Scores
    batches: Batches
    begin: Callable[[list[Candidate]], None] = lambda _: None
    """Called with each new batch, before it is asked."""
    tried: list[Tried] = field(default_factory=list)
    spent: int = 0

    async def run(self, initial: Sequence[Candidate] = ()) -> Tried:
        """The best that was found. initial: asked whole, at the stage's cost, before all else."""
        await self._ask([self._entered(c) for c in initial], len(self.plan.order))
        position = 0
        while batch := self._batch(position):
            await self._race([self._entered(candidate) for candidate in batch])
            position += 1
        return await self._finals()

    def _batch(self, position: int) -> list[Candidate]:
        room = self.plan.answers - self.plan.for_finals - self.spent
        count = min(self.plan.batch, room // self.plan.rungs[-1])
        if count < 1:
            return []
        if position < len(self.batches):
            return self.batches[position][:count]
        batch = self.propose(self.plan.space, self.known(), count, self.plan.seed)
        self.begin(batch)
        return batch

    def known(self) -> list[Known]:
        """Every candidate with the score that is expected of it on all prompts."""
        best = self._leader()
        reference = self._scored(best) if best else []
        return [
            Known(one.candidate, None if one.has_failed else estimate(self._scored(one), reference))
            for one in self.tried
            if one.asked or one.has_failed
        ]

    async def _race(self, racers: list[Tried]) -> None:
        for look in self.plan.rungs:
            await self._ask(racers, look)
            best = self._leader()
            reference = self._scored(best) if best else []
            racers = [one for one in racers if not one.has_failed]
            racers = [one for one in racers if not is_behind(self._scored(one), reference)]

    async def _finals(self) -> Tried:
        """The best of the first few on all prompts; of equals the smallest. Raises NothingFound."""
        expected = {known.candidate: known.score for known in self.known()}
        rest = [one for one in self.tried if expected.get(one.candidate) is not None]
        rest.sort(key=lambda one: (-(expected[one.candidate] or 0.0), one.candidate.size))
        finalists = rest[: self.plan.num_finalists]
        await self._ask(finalists, len(self.plan.order))
        whole = [one for one in rest if one.asked == len(self.plan.order) and not one.has_failed]
        if not whole:
            raise NothingFound("no candidate was answered on all prompts")
        return max(whole, key=lambda one: (self._mean(one), -one.candidate.size))

    async def _ask(self, those: Sequence[Tried], num_prompts: int) -> None:
        prompts = self.plan.order[:num_prompts]
        await self.fill([(one.candidate, prompts) for one in those])
        for one in those:
            self.spent += max(0, num_prompts - one.asked)
            one.has_failed = self.scores(one.candidate, prompts) is None
            one.asked = one.asked if one.has_failed else max(one.asked, num_prompts)
        for one in those:
            one.at = self.spent

    def _entered(self, candidate: Candidate) -> Tried:
        self.tried.append(Tried(candidate))
        return self.tried[-1]

    def _leader(self) -> Tried | None:
        running = [one for one in self.tried if one.asked and not one.has_failed]
        return running[leader([self._scored(one) for one in running])] if running else None

    def _scored(self, one: Tried) -> list[float]:
        return self.scores(one.candidate, self.plan.order[: one.asked]) or []

    def _mean(self, one: Tried) -> float:
        scores = self._scored(one)
        return sum(scores) / len(scores)


class NothingFound(Exception):
    """Every candidate of a stage failed."""
