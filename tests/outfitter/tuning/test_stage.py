"""A search on a surface that is known, without a gateway."""

import asyncio
from collections.abc import Sequence

import pytest

from outfitter.tuning.optimiser import PROPOSERS, Known, propose_random
from outfitter.tuning.space import Candidate, Space
from outfitter.tuning.stage import NothingFound, Plan, Stage

BEST = (1.2, 0.4)
NUM_PROMPTS = 40


class Surface:
    """Passes a prompt where it is near enough for the prompt's hardness."""

    def __init__(self) -> None:
        self.asked: set[tuple[Candidate, int]] = set()
        self.broken: set[Candidate] = set()
        self.is_down = False

    async def fill(self, pairs: Sequence[tuple[Candidate, Sequence[int]]]) -> None:
        self.asked |= {(candidate, prompt) for candidate, prompts in pairs for prompt in prompts}

    def scores(self, candidate: Candidate, prompts: Sequence[int]) -> list[float] | None:
        assert {(candidate, prompt) for prompt in prompts} <= self.asked
        if self.is_down or candidate in self.broken:
            return None
        gap = sum((a - b) ** 2 for a, b in zip(candidate.weights, BEST, strict=True)) ** 0.5
        return [float((prompt * 7 % NUM_PROMPTS) / NUM_PROMPTS > gap) for prompt in prompts]


def stage(surface: Surface, batches: list, name: str = "tpe", **plan: object) -> Stage:
    if name == "tpe":
        pytest.importorskip("optuna")
    space = Space(2)
    fields = {"order": tuple(range(NUM_PROMPTS)), "budget": 24, "seed": 3, **plan}
    proposer = PROPOSERS[name]
    return Stage(Plan(space, **fields), proposer, surface.fill, surface.scores, batches)


def test_it_comes_near_the_best_within_its_budget() -> None:
    """Nearer than the baselines, for no more answers than the budget buys."""
    surface = Surface()
    run = stage(surface, [])
    space = run.plan.space
    best = asyncio.run(run.run([*space.equals, *space.alone]))
    gap = sum((a - b) ** 2 for a, b in zip(best.candidate.weights, BEST, strict=True)) ** 0.5
    assert gap < 0.2
    assert len(surface.asked) <= run.spent <= 24 * NUM_PROMPTS
    assert best.asked == NUM_PROMPTS


def test_a_race_tries_more_for_the_same() -> None:
    """And asks the hopeless no further than the first look."""
    raced, whole = (stage(Surface(), [], "random", is_raced=is_raced) for is_raced in (True, False))
    for run in (raced, whole):
        asyncio.run(run.run())
    assert len(raced.tried) > 2 * len(whole.tried)
    assert {one.asked for one in raced.tried} == {10, 20, 40}
    assert {one.asked for one in whole.tried} == {40}


@pytest.mark.parametrize("name", ["tpe", "random"])
def test_one_that_was_stopped_goes_on_the_same(name: str) -> None:
    """Given the batches so far it proposes what it would have proposed."""
    noted: list[list[Candidate]] = []
    run = stage(Surface(), [], name)
    run.begin = noted.append
    best = asyncio.run(run.run())
    again: list[list[Candidate]] = []
    second = stage(Surface(), noted[:2], name)
    second.begin = again.append
    assert asyncio.run(second.run()).candidate == best.candidate
    assert noted[2:] == again
    assert second.spent == run.spent


def test_what_failed_is_never_chosen() -> None:
    """It has no score, and the others go on; when all fail nothing is found."""
    surface = Surface()
    run = stage(surface, [], "random")
    asyncio.run(run.run())
    best = max(run.known(), key=lambda known: known.score or 0)
    surface.broken = {best.candidate}
    rerun = stage(surface, [], "random")
    assert asyncio.run(rerun.run()).candidate != best.candidate
    known = {one.candidate: one.score for one in rerun.known()}
    assert known[best.candidate] is None
    surface.is_down = True
    with pytest.raises(NothingFound):
        asyncio.run(stage(surface, [], "random").run())


def test_nothing_is_proposed_twice() -> None:
    """What is known teaches nothing more."""
    space = Space(2)
    history: list[Known] = []
    for _ in range(5):
        history += [Known(one, 0.5) for one in propose_random(space, history, 8, 1)]
    assert len({known.candidate for known in history}) == 40


def test_methods_and_density_are_searched() -> None:
    """With the weights, and density only where there is one; failures are borne."""
    pytest.importorskip("optuna")
    space = Space(2, methods=("linear", "ties", "sce"), density=(0.2, 0.8))
    history: list[Known] = [Known(one, None) for one in (*space.equals, *space.alone)]
    for _ in range(6):
        batch = PROPOSERS["tpe"](space, history, 8, 1)
        history += [Known(one, float(one.method == "ties")) for one in batch]
    found = [known.candidate for known in history[4:]]
    assert {one.method for one in found} == {"linear", "ties", "sce"}
    assert all((one.density is not None) == (one.method == "ties") for one in found)
    late = [one.method for one in found[-16:]]
    assert late.count("ties") > 8


def test_a_larger_budget_goes_on_from_a_smaller_one() -> None:
    """What was tried is tried first."""
    noted: list[list[Candidate]] = []
    small = stage(Surface(), [], "random", budget=12)
    small.begin = noted.append
    asyncio.run(small.run())
    large = stage(Surface(), [*noted], "random", budget=24)
    asyncio.run(large.run())
    tried = [one.candidate for one in large.tried]
    assert tried[: sum(map(len, noted))] == [one for batch in noted for one in batch]
    assert len(tried) > len(small.tried)
