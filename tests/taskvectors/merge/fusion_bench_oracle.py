"""FusionBench's arithmetic without its trainers: single modules; no package's __init__ is run."""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_ROOT = "fusion_bench"


@cache
def load(name: str) -> Any:
    """The module `fusion_bench.<name>`, for example `method.tall_mask.utils`."""
    with _bare_packages(f"{_ROOT}.{name}"):
        return importlib.import_module(f"{_ROOT}.{name}")


@contextlib.contextmanager
def _bare_packages(name: str) -> Iterator[None]:
    """The packages above `name` are folders only, with the few names that its modules ask for."""
    spec = importlib.util.find_spec(_ROOT)  # finds, does not run
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    for package in {*_parents(name), f"{_ROOT}.utils", f"{_ROOT}.models"}:
        module = ModuleType(package)
        module.__path__ = [str(folder.joinpath(*package.split(".")[1:]))]
        sys.modules[package] = module
    root, utils = sys.modules[_ROOT], sys.modules[f"{_ROOT}.utils"]
    types = importlib.import_module(f"{_ROOT}.utils.type")
    root.__dict__.update(StateDictType=types.StateDictType, TorchModelType=types.TorchModelType)
    utils.__dict__.update(
        timeit_context=lambda _: contextlib.nullcontext(),
        state_dict_to_vector=None,
        vector_to_state_dict=None,
    )
    try:
        yield
    finally:
        for loaded in [n for n in sys.modules if n == _ROOT or n.startswith(f"{_ROOT}.")]:
            del sys.modules[loaded]


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def tall_masks(deltas: torch.Tensor, summed: torch.Tensor, mask_lambda: float) -> torch.Tensor:
    """bool [K, n] of flat vectors [K, n] and their merge [n]; the base is zero."""
    generate = load("method.tall_mask.utils").generate_task_masks
    masks = [
        generate(delta[None], delta, torch.zeros_like(delta), summed, mask_lambda)
        for delta in deltas
    ]
    return torch.stack(masks)
