"""What scenarios work with: engines that take turns, step by step.

Within a round every engine, or every way of one engine, has one turn, in random order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import numpy as np

from taskvectors.bench.engines import Adapter, Engine, EngineSpec, Kind
from taskvectors.bench.settings import Settings
from taskvectors.bench.vectors import Vectors

Name = TypeVar("Name", bound=str)
Turn = Callable[[], float]
"""Does something once, and returns its seconds."""


@dataclass(frozen=True)
class Lab:
    """Engines that are up, and what they were given.

    spec: of the plugin's engine. resident: of each vector, bytes of its arrays and bytes as the
    pool counts it. tick: called after each round.
    """

    settings: Settings
    engines: Mapping[Kind, Engine]
    spec: EngineSpec
    vectors: Vectors
    resident: Mapping[str, tuple[int, int]]
    generator: np.random.Generator
    tick: Callable[[], None]

    def rounds(self, count: int, turns: Mapping[Name, Turn]) -> dict[Name, list[float]]:
        """Seconds of `count` rounds; nobody has the same predecessor always."""
        times: dict[Name, list[float]] = {name: [] for name in turns}
        names = list(turns)
        for _ in range(count):
            for i in self.generator.permutation(len(names)):
                times[names[i]].append(turns[names[i]]())
            self.tick()
        return times


def medians(times: Mapping[Name, Sequence[float]]) -> dict[str, float]:
    """By name."""
    return {name: median(values) for name, values in times.items()}


def cycled(adapters: Sequence[Adapter], count: int) -> list[Adapter]:
    """`count` of them, over and over."""
    return [adapters[i % len(adapters)] for i in range(count)]
