"""A whole run: vectors drawn, engines started, every scenario measured, every goal judged."""

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taskvectors.bench.engines import Engine, EngineSpec, Kind
from taskvectors.bench.goals import Verdict, goals, judge
from taskvectors.bench.lab import Lab
from taskvectors.bench.measures import Figure
from taskvectors.bench.scenarios import ALL, SCENARIOS
from taskvectors.bench.settings import Settings
from taskvectors.bench.vectors import Vectors, draw_vectors, linear_shapes

Progress = Callable[[int, int, str], None]
"""Called with rounds done, rounds in all, and what is under way."""


SMALL_BLOCK = 32
"""Tokens, on a CPU: with vLLM's 128 the cache would hold too few of many short requests."""
GPU_SHARE = 0.28
"""Of a GPU's memory, for each of three engines."""


@dataclass(frozen=True)
class Outcome:
    """What a run found. device: what the engines ran on."""

    settings: Settings
    device: str
    figures: tuple[Figure, ...]
    verdicts: tuple[Verdict, ...]


class Meter:
    """Counts the work that is done, and tells it."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._progress = total, progress
        self._done, self._what = 0, ""

    def begin(self, what: str) -> None:
        """Name what comes next."""
        self._what = what
        self._tell()

    def tick(self) -> None:
        """One more is done."""
        self._done += 1
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self._done, self._total, self._what)


def run(settings: Settings, progress: Progress | None = None) -> Outcome:
    """Measure. Raises InvalidBench, InvalidCheckpoint, EngineFailed, OSError."""
    shapes = linear_shapes(settings.model, dummy=settings.dummy)
    chosen = [(name, SCENARIOS[name]) for name in SCENARIOS if name in settings.scenarios]
    kinds = [kind for kind in ALL if any(kind in scenario.engines for _, scenario in chosen)]
    total = 1 + len(kinds) + sum(scenario.rounds(settings) for _, scenario in chosen)
    meter = Meter(total, progress)
    with tempfile.TemporaryDirectory(prefix="outfitter-bench-") as folder:
        meter.begin("drawing vectors")
        adapters = settings.many if "stock" in kinds else 0
        vectors = draw_vectors(shapes, Path(folder), adapters, settings.seed)
        meter.tick()
        with contextlib.ExitStack() as stack:
            engines: dict[Kind, Engine] = {}
            for kind in kinds:
                meter.begin(f"starting {kind}")
                engines[kind] = stack.enter_context(Engine(_spec(kind, settings, vectors)))
                meter.tick()
            figures = _measure(settings, engines, vectors, meter, [n for n, _ in chosen])
    wanted = goals(settings.decode_batches, settings.many, on_gpu=settings.on_gpu)
    verdicts = judge({figure.key: figure for figure in figures}, wanted)
    device = next(iter(engines.values())).device
    return Outcome(settings, device, tuple(figures), tuple(verdicts))


def _measure(
    settings: Settings,
    engines: dict[Kind, Engine],
    vectors: Vectors,
    meter: Meter,
    names: list[str],
) -> list[Figure]:
    resident = engines["plugin"].load(vectors.digests)
    generator = np.random.default_rng(settings.seed)
    spec = _spec("plugin", settings, vectors)
    lab = Lab(settings, engines, spec, vectors, resident, generator, meter.tick)
    figures = []
    for name in names:
        meter.begin(name)
        figures += SCENARIOS[name].measure(lab)
    return figures


def _spec(kind: Kind, settings: Settings, vectors: Vectors) -> EngineSpec:
    extra: dict[str, Any] = {
        "max_model_len": settings.max_model_len,
        "max_num_seqs": max(settings.flat_batch, *settings.decode_batches),
        "seed": settings.seed,
        "skip_tokenizer_init": True,
    }
    if not settings.on_gpu:
        extra["block_size"] = SMALL_BLOCK
    if settings.dummy:
        extra["load_format"] = "dummy"
    if settings.on_gpu or settings.memory is not None:
        extra["gpu_memory_utilization"] = settings.memory or GPU_SHARE
    return EngineSpec(
        kind,
        settings.model.resolve(),
        settings.value_dtype,
        vectors.store,
        slots=settings.flat_batch if kind == "plugin" else settings.many,
        pool_bytes=2 * sum(vectors.nbytes.values()) + (64 << 20),
        threads=settings.threads,
        eager=settings.eager,
        extra=extra,
    )
