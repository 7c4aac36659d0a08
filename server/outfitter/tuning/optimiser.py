"""Which candidates to try next, given what is known of earlier ones. Pure: the same answer for
the same history and seed, so that a search that was stopped goes on as if it had not been.
"""

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from outfitter.tuning.space import Candidate, Space

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial


@dataclass(frozen=True)
class Known:
    """A candidate that was tried. score: what is expected of it on all prompts, None if failed."""

    candidate: Candidate
    score: float | None


Proposer = Callable[[Space, Sequence[Known], int, int], list[Candidate]]
"""`propose(space, history, count, seed)`: `count` candidates, none of them twice if it can."""

MAX_REDRAWS = 20


def propose_random(
    space: Space, history: Sequence[Known], count: int, seed: int
) -> list[Candidate]:
    """Uniform draws: what an optimiser has to beat."""
    rng = random.Random(f"{seed} {len(history)}")  # noqa: S311 - no secret
    return _distinct(space, history, count, rng, lambda: space.draw(rng))


def propose_tpe(space: Space, history: Sequence[Known], count: int, seed: int) -> list[Candidate]:
    """Tree-structured Parzen estimators (Bergstra et al. 2011), over all dimensions jointly.

    Candidates of one batch see each other as bad ones (Optuna's constant liar), so they spread.
    The first draws are uniform.
    """
    rng = random.Random(f"{seed} {len(history)}")  # noqa: S311 - no secret
    study = _study(space, history, rng.getrandbits(32))
    return _distinct(space, history, count, rng, lambda: _suggested(space, study.ask()))


PROPOSERS: Mapping[str, Proposer] = MappingProxyType({"tpe": propose_tpe, "random": propose_random})


def num_startup(space: Space) -> int:
    """Tries, baselines included, before the estimators say anything."""
    return 4 + 2 * space.num_vectors


def _distinct(
    space: Space,
    history: Sequence[Known],
    count: int,
    rng: random.Random,
    draw: Callable[[], Candidate],
) -> list[Candidate]:
    """`count` draws; of what was tried before there is nothing to learn, so it is drawn anew."""
    seen = {known.candidate for known in history}
    found: list[Candidate] = []
    for _ in range(count):
        candidate = draw()
        for _ in range(MAX_REDRAWS):
            if candidate not in seen:
                break
            candidate = space.draw(rng)
        seen.add(candidate)
        found.append(candidate)
    return found


def _study(space: Space, history: Sequence[Known], seed: int) -> "Study":
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=num_startup(space),
            multivariate=True,
            group=len(space.methods) > 1,
            constant_liar=True,
            seed=seed,
        )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials([_trial(space, known) for known in history])
    return study


def _trial(space: Space, known: Known) -> "FrozenTrial":
    from optuna.trial import TrialState, create_trial

    params, distributions = _encoded(space, known.candidate)
    state = TrialState.FAIL if known.score is None else TrialState.COMPLETE
    return create_trial(params=params, distributions=distributions, value=known.score, state=state)


def _encoded(
    space: Space, candidate: Candidate
) -> tuple[dict[str, Any], dict[str, "BaseDistribution"]]:
    """What Optuna knows of a candidate; baselines outside the bounds count as on them."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    method = candidate.method if candidate.method in space.methods else space.methods[0]
    params: dict[str, Any] = {}
    kinds: dict[str, BaseDistribution] = {}
    if len(space.methods) > 1:
        params["method"], kinds["method"] = method, CategoricalDistribution(space.methods)
    if space.has_weights(method):
        low, high = space.weights
        for i, weight in enumerate(candidate.weights):
            params[f"w{i}"] = min(max(weight, low), high)
            kinds[f"w{i}"] = FloatDistribution(low, high)
    if space.has_density(method):
        low, high = space.density
        params["density"] = min(max(candidate.density or high, low), high)
        kinds["density"] = FloatDistribution(low, high)
    return params, kinds


def _suggested(space: Space, trial: "Trial") -> Candidate:
    method = space.methods[0]
    if len(space.methods) > 1:
        method = str(trial.suggest_categorical("method", space.methods))
    weights = [1.0] * space.num_vectors
    if space.has_weights(method):
        weights = [trial.suggest_float(f"w{i}", *space.weights) for i in range(space.num_vectors)]
    density = None
    if space.has_density(method):
        density = trial.suggest_float("density", *space.density)
    return space.candidate(weights, method, density)
