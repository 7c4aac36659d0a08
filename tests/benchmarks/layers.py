"""Time the CPU's kernels alone: all layers of SmolLM2-135M in turn, beside torch's own products.

    python -m tests.benchmarks.layers --dtype float32

Eight vectors are resident, four low-rank (r8, r16) and four sparse (1 %), in bf16; a loadout mixes
one of each kind. No engine and no attention: a decode step has both besides.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from taskvectors.bench.machine import write_result
from taskvectors.kernels.blocks import Block, LayerTable, RankPair, TokenGroups
from taskvectors.kernels.cpu import add_layer, warm_up
from taskvectors.packed import PackedRows

RESULTS = Path(__file__).parent / "results"
SEED = 7
LAYERS = 30
SHAPES = (((576, 192, 192), 576), ((576,), 576), ((1536, 1536), 576), ((576,), 1536))
"""Rows of each part, and columns, of the linear layers of one decoder layer."""
VECTORS, LOW_RANK, DENSITY = 8, 4, 0.01
PAIRS = [(i % LOW_RANK, LOW_RANK + (i // LOW_RANK + i) % LOW_RANK) for i in range(16)]

Layer = tuple[LayerTable, Tensor]
Run = Callable[[LayerTable, Tensor, Tensor, Tensor], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 64, 512])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    print(f"seed {SEED}")
    torch.set_num_threads(1)
    dtype = getattr(torch, options.dtype)
    warm_up(dtype)
    layers = _layers(np.random.default_rng(SEED), dtype)
    tokens = {str(n): _measure(layers, n, dtype, options.rounds) for n in options.tokens}
    write_result(
        RESULTS / f"layers_{options.dtype}.json",
        {
            "command": f"python -m tests.benchmarks.layers --dtype {options.dtype}"
            f" --rounds {options.rounds}",
            "seed": SEED,
            "what": "seconds of all linear layers; shares are medians of time over `base`'s in the"
            " same round",
            "tokens": tokens,
        },
    )


def _layers(generator: np.random.Generator, dtype: torch.dtype) -> list[Layer]:
    layers = []
    for parts, width in SHAPES * LAYERS:
        starts = np.cumsum([0, *parts]).tolist()
        blocks = [
            Block(column, part, starts[part], _delta(column, rows, width, generator))
            for column in range(VECTORS)
            for part, rows in enumerate(parts)
        ]
        weight = torch.from_numpy(generator.standard_normal((sum(parts), width), np.float32))
        layers.append((LayerTable(blocks), weight.to(dtype)))
    return layers


def _delta(
    column: int, rows: int, width: int, generator: np.random.Generator
) -> PackedRows | RankPair:
    def values(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)

    if column < LOW_RANK:
        rank = 8 * (1 + column % 2)
        a, b = values(rank, width), values(rank, rows)
        return RankPair(a.view(np.uint16), b.view(np.uint16), 0.02)
    index = np.flatnonzero(generator.random(rows * width) < DENSITY)
    return PackedRows.from_flat((rows, width), index, values(len(index)))


def _groups(tokens: int, pairs: list[tuple[int, int]]) -> TokenGroups:
    """Token t uses the vectors of `pairs[t % len(pairs)]`."""
    users: list[list[int]] = [[] for _ in range(VECTORS)]
    for token in range(tokens):
        for column in pairs[token % len(pairs)]:
            users[column].append(token)
    ends = np.cumsum([len(own) for own in users])
    bounds = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1).astype(np.int32)
    flat = np.concatenate([np.array(own, np.int32) for own in users])
    return TokenGroups(bounds, flat, np.full((1, len(flat)), 0.5, np.float32))


def _measure(
    layers: list[Layer], tokens: int, dtype: torch.dtype, rounds: int
) -> dict[str, object]:
    loadouts = {"one loadout": PAIRS[:1], "16 loadouts": PAIRS}
    cases: dict[str, Run] = {"base": lambda _table, weight, x, _y: x @ weight.T}
    for name, pairs in loadouts.items():
        if tokens >= len(pairs):
            groups = _groups(tokens, pairs)
            cases[name] = lambda table, _w, x, y, groups=groups: add_layer(y, x, table, groups)
    x = {width: torch.randn(tokens, width).to(dtype) for _, width in SHAPES}
    y = {sum(parts): torch.zeros(tokens, sum(parts), dtype=dtype) for parts, _ in SHAPES}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, run in cases.items():
            begin = time.perf_counter()
            for table, weight in layers:
                run(table, weight, x[weight.shape[1]], y[len(weight)])
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - begin)
    return {name: _summary(name, tokens, own, seconds["base"]) for name, own in seconds.items()}


def _summary(name: str, tokens: int, own: list[float], base: list[float]) -> dict[str, object]:
    share = statistics.median(a / b for a, b in zip(own, base, strict=True))
    print(f"{tokens:4d} tokens, {name:12s} {share:5.2f} of the base's products")
    return {"share": share, "seconds": own}


if __name__ == "__main__":
    main()
