"""The dense oracles: mergekit 0.1.5, PEFT 0.21.2, and the authors' TIES written from their page.

Among equal magnitudes mergekit and PEFT keep whichever their sort happens to leave in front.
`stable_sorts` makes these sorts stable, so that the lowest index comes first, which is our rule.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import hypothesis
import numpy as np
import peft.utils.merge_utils as peft
import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import TensorGroup

from taskvectors.sparsify import uniform
from tests.taskvectors.merge.drawing import Dense, Drawn

RELATIVE = 1e-6
"""Of float32 results against float32 oracles, for sums and quotients in another order."""
ABSOLUTE = 1e-6
"""The same, times the largest weighted magnitude of the inputs."""


def mergekit(case: Drawn, method: str, **parameters: Any) -> Dense:
    """The merged delta of every parameter: mergekit's result on a base of zeros."""
    return {name: one_by_mergekit(case, name, method, **parameters) for name in case.shapes}


def one_by_mergekit(case: Drawn, name: str, method: str, **parameters: Any) -> Any:
    """One parameter, dense float32."""
    tensors = case.tensors(name, torch.float32)
    merged = merge_group([torch.zeros_like(tensors[0]), *tensors], case.weights, method, parameters)
    return merged.numpy()


def merge_group(
    tensors: Sequence[torch.Tensor],
    weights: Sequence[float],
    method: str,
    parameters: dict[str, Any],
) -> torch.Tensor:
    """mergekit on one parameter of the base (first) and of the fine-tuned checkpoints."""
    group = TensorGroup.from_tensors(list(tensors), base_index=0)
    if method == "sce":
        return registry.get(method).merge_group(group, int8_mask=False, **parameters)
    ids = range(1, len(tensors))
    per_vector = {
        key: dict.fromkeys(ids, parameters.get(key, default))
        for key, default in (("density", 1.0), ("gamma", 0.01), ("epsilon", 0.15))
    }
    shared = {
        "int8_mask": False,
        "normalize": parameters.get("normalize", False),
        "rescale": parameters.get("rescale", False),
        "lambda": parameters.get("lambda", 1.0),
    }
    weight = dict(zip(ids, weights, strict=True))
    return registry.get(method).merge_group(group, weight=weight, **per_vector, **shared)


def by_peft(case: Drawn, method: str, *arguments: Any) -> Dense:
    """The merged delta of every parameter by a function of `peft.utils.merge_utils`."""
    weights = torch.tensor(case.weights, dtype=torch.float32)
    return {
        name: getattr(peft, method)(case.tensors(name, torch.float32), weights, *arguments).numpy()
        for name in case.shapes
    }


@contextlib.contextmanager
def stable_sorts() -> Iterator[None]:
    """Within it torch sorts equal elements by their place."""
    sort, argsort = torch.sort, torch.argsort

    def top(tensor: torch.Tensor, k: int, largest: bool = True) -> Any:
        assert largest
        values, places = sort(tensor, descending=True, stable=True)
        return values[:k], places[:k]

    with (
        mock.patch("torch.sort", lambda *a, **k: sort(*a, **k, stable=True)),
        mock.patch("torch.argsort", lambda *a, **k: argsort(*a, **k, stable=True)),
        mock.patch("torch.topk", top),
    ):
        yield


@contextlib.contextmanager
def our_draws(name: str, seed: int, num_vectors: int) -> Iterator[None]:
    """Within it `torch.bernoulli` gives vector 0, 1, … the draws that its elements have here.

    Gives up an example where a probability and a draw are too close to call in float32.
    """
    keys: Iterator[int] = iter(range(num_vectors))

    def bernoulli(chances: torch.Tensor) -> torch.Tensor:
        draws = uniform(str(next(keys)), seed, name, np.arange(chances.numel()))
        exact = chances.double().numpy().reshape(-1)
        if bool((np.abs(draws - exact) < 1e-6).any()):
            hypothesis.reject()
        return torch.from_numpy(draws < exact).reshape(chances.shape).to(chances.dtype)

    with mock.patch("torch.bernoulli", bernoulli):
        yield


def with_our_draws(
    case: Drawn, seed: int, merge_one: Callable[[str], Any], times: int = 1
) -> Dense:
    """`merge_one(name)` of each parameter under our draws; it draws once for each vector."""
    merged = {}
    for name in case.shapes:
        with our_draws(name, seed, times * len(case.vectors)):
            merged[name] = merge_one(name)
    return merged


def ties_of_the_authors(case: Drawn, density: float, how: str, scale: float, numel: int) -> Dense:
    """TIES over the whole model, from the paper's Algorithm 1 and the authors' notebook.

    Every vector is one long row of `numel` elements; what the vectors lack is zeros. Exact sums
    of the row, float64.
    """
    names = sorted(case.shapes)
    rows = [np.concatenate([dense[name].ravel() for name in names]) for dense in case.dense]
    flat = torch.zeros(len(rows), numel, dtype=torch.float64)
    for k, row in enumerate(rows):
        flat[k, : len(row)] = torch.from_numpy(row)
    rank = numel - int(numel * density)  # of the least kept magnitude, from the smallest
    if rank >= 1:
        least = flat.abs().sort(dim=1).values[:, rank - 1 : rank]
        flat = torch.where(flat.abs() >= least, flat, 0.0)
    elected = flat.sum(0).sign()
    elected = torch.where(elected == 0, elected.sum().sign(), elected)
    agree = torch.where(elected > 0, flat > 0, flat < 0)
    kept = torch.where(agree, flat, 0.0)
    merged = {
        "sum": kept.sum(0),
        "mean": kept.sum(0) / agree.sum(0).clamp(min=1),
        "max": kept.abs().max(0).values * elected,
    }[how]
    return split(case, names, scale * merged.numpy())


def split(case: Drawn, names: Sequence[str], row: Any) -> Dense:
    """One long row as the parameters that it starts with."""
    parameters, begin = {}, 0
    for name in names:
        size = int(np.prod(case.shapes[name]))
        parameters[name] = row[begin : begin + size].reshape(case.shapes[name])
        begin += size
    return parameters


def assert_equal(ours: Dense, theirs: Dense) -> None:
    """The same numbers to the bit; −0 is 0."""
    for name, expected in theirs.items():
        np.testing.assert_array_equal(ours[name], expected)


def assert_near(case: Drawn, ours: Dense, theirs: Dense, *, factor: float = 1.0) -> None:
    """Within RELATIVE, and ABSOLUTE × `factor` of the largest weighted magnitude."""
    largest = max(
        float(np.abs(dense[name]).max(initial=0.0)) * max(abs(weight), 1.0)
        for dense, weight in zip(case.dense, case.weights, strict=True)
        for name in case.shapes
    )
    for name, expected in theirs.items():
        np.testing.assert_allclose(
            ours[name], expected, rtol=RELATIVE, atol=ABSOLUTE * factor * largest
        )
