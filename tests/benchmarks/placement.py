"""Measure what placement weighs: a loadout's sparse vectors one by one, and composed into one.

    python -m tests.benchmarks.placement

All layers of SmolLM2-135M in turn, without an engine. The vectors are in bf16, as files usually
are; what is composed of them is in float32, as the composer writes it. Costs are fitted by least
squares to the times of single vectors: a nonzero, a row, and one unit for each column of the input.
"""

import argparse
import statistics
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import torch

from taskvectors.bench.machine import write_result
from taskvectors.kernels.blocks import Block, LayerTable, RankPair, TokenGroups
from taskvectors.kernels.cpu import add_layer, warm_up
from taskvectors.packed import PackedRows
from taskvectors.vllm_plugin.placement import ParameterCost, predict
from tests.benchmarks.layers import LAYERS, RESULTS, SHAPES

SEED = 11
FITTED = (0.0005, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
MIXES = ((2, 0.01), (8, 0.01), (4, 0.1), (8, 0.1))
RANKS = (8, 16)
Tables = list[LayerTable]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--layers", type=int, default=LAYERS)
    options = parser.parse_args()
    print(f"seed {SEED}")
    torch.set_num_threads(1)
    warm_up(torch.float32)
    generator = np.random.default_rng(SEED)
    shapes = SHAPES * options.layers
    found: dict[str, object] = {}
    for tokens in options.tokens:
        costs = _costs(shapes, tokens, options.rounds, generator)
        gains = {f"{k} × {d:.0%}": _gain(shapes, k, d, tokens, options.rounds, generator)
                 for k, d in MIXES}  # fmt: skip
        found[str(tokens)] = {"costs_ns": costs, "gains": gains}
    write_result(
        Path(RESULTS) / "placement.json",
        {
            "command": "python -m tests.benchmarks.placement",
            "seed": SEED,
            "what": "costs: nanoseconds a token; gains: part of the vectors' own time that"
            " composing saves, predicted and measured in the same round",
            "tokens": found,
        },
    )


def _costs(shapes, tokens, rounds, generator) -> dict[str, float]:  # type: ignore[no-untyped-def]
    """Least squares over single vectors; medians of rounds."""
    cases = {}
    for density in FITTED:
        for dtype in (ml_dtypes.bfloat16, np.float32):
            masks = _draw(shapes, density, generator)
            cases[density, dtype] = _tables(shapes, [masks], dtype, generator)
    for rank in RANKS:
        cases[rank, None] = _low_rank(shapes, rank, generator)
    seconds = _time(cases, shapes, tokens, rounds)
    rows = sum(sum(parts) for parts, _ in shapes)
    columns = sum(width * len(parts) for parts, width in shapes)
    numel = sum(sum(parts) * width for parts, width in shapes)
    factors = sum(width * len(parts) + sum(parts) for parts, width in shapes)
    costs = {}
    for name, dtype in (("bf16", ml_dtypes.bfloat16), ("float32", np.float32)):
        matrix = np.array([[d * numel, rows] for d in FITTED], float)
        times = np.array([statistics.median(seconds[d, dtype]) for d in FITTED])
        scale = 1 / times  # relative errors
        fit = np.linalg.lstsq(matrix * scale[:, None], times * scale, rcond=None)[0]
        costs[f"element_{name}"], costs[f"row_{name}"] = (1e9 / tokens * fit).tolist()
        print(tokens, name, [f"{d}: {t * 1e9 / tokens / (d * numel):.2f} ns/nnz"
                             for d, t in zip(FITTED, times, strict=True)])  # fmt: skip
    for rank in RANKS:
        median = statistics.median(seconds[rank, None])
        costs[f"rank{rank}_element"] = 1e9 / tokens * median / (rank * factors)
    print(tokens, {k: round(v, 3) for k, v in costs.items()}, "columns/rows", columns / rows)
    return costs


def _gain(shapes, number, density, tokens, rounds, generator) -> dict[str, float]:  # type: ignore[no-untyped-def]
    masks = [_draw(shapes, density, generator) for _ in range(number)]
    union = [[np.unique(np.concatenate(own)) for own in zip(*parts, strict=True)]
             for parts in zip(*masks, strict=True)]  # fmt: skip
    cases = {
        "plain": _tables(shapes, masks, ml_dtypes.bfloat16, generator),
        "composed": _tables(shapes, [union], np.float32, generator),
    }
    seconds = _time(cases, shapes, tokens, rounds)
    ratios = [c / p for c, p in zip(seconds["composed"], seconds["plain"], strict=True)]
    vectors = [_cost(shapes, mask) for mask in masks]
    estimate = predict(vectors)
    predicted = 1 - estimate.after / estimate.before
    gain = {"predicted": predicted, "measured": 1 - statistics.median(ratios)}
    print(f"{tokens:3d} tokens, {number} × {density:.0%}: "
          f"{ {k: round(v, 3) for k, v in gain.items()} } "
          f"{statistics.median(seconds['plain']) * 1e3:.2f} ms plain")  # fmt: skip
    return gain


def _cost(shapes, masks):  # type: ignore[no-untyped-def]
    return {
        f"{n}.{part}": ParameterCost(len(masks[n][part]), rows, rows * width)
        for n, (parts, width) in enumerate(shapes)
        for part, rows in enumerate(parts)
    }


def _draw(shapes, density, generator):  # type: ignore[no-untyped-def]
    return [
        [np.flatnonzero(generator.random(rows * width) < density) for rows in parts]
        for parts, width in shapes
    ]


def _tables(shapes, masks, dtype, generator) -> Tables:  # type: ignore[no-untyped-def]
    tables = []
    for n, (parts, width) in enumerate(shapes):
        starts = np.cumsum([0, *parts]).tolist()
        blocks = []
        for column, mask in enumerate(masks):
            for part, rows in enumerate(parts):
                index = mask[n][part]
                values = generator.standard_normal(len(index), np.float32).astype(dtype)
                delta = PackedRows.from_flat((rows, width), index, values)
                blocks.append(Block(column, part, starts[part], delta))
        tables.append(LayerTable(blocks))
    return tables


def _low_rank(shapes, rank, generator) -> Tables:  # type: ignore[no-untyped-def]
    tables = []
    for parts, width in shapes:
        starts = np.cumsum([0, *parts]).tolist()
        blocks = []
        for part, rows in enumerate(parts):
            a, b = (
                generator.standard_normal((rank, n), np.float32)
                .astype(ml_dtypes.bfloat16).view(np.uint16)
                for n in (width, rows)
            )  # fmt: skip
            blocks.append(Block(0, part, starts[part], RankPair(a, b, 0.5)))
        tables.append(LayerTable(blocks))
    return tables


def _time(cases, shapes, tokens, rounds):  # type: ignore[no-untyped-def]
    x = {width: torch.randn(tokens, width) for _, width in SHAPES}
    y = {sum(parts): torch.zeros(tokens, sum(parts)) for parts, _ in SHAPES}
    seconds = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, tables in cases.items():
            columns = 1 + max(int(b) for b in [len(tables[0].fields) // len(shapes[0][0]) - 1])
            ends = np.arange(1, columns + 1) * tokens
            bounds = np.stack([ends - tokens, ends], axis=1).astype(np.int32)
            flat = np.tile(np.arange(tokens, dtype=np.int32), columns)
            groups = TokenGroups(bounds, flat, np.full((1, len(flat)), 0.5, np.float32))
            begin = time.perf_counter()
            for table, (parts, width) in zip(tables, shapes, strict=True):
                add_layer(y[sum(parts)], x[width], table, groups)
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


if __name__ == "__main__":
    main()
