"""Kills the engine, Valkey and PostgreSQL at random moments, and starts the servers again.

Each is killed at least once, however soon the run is told to stop.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable

import psutil

from tests.benchmarks.fire.site import Site

MAX_PAUSE_S = 3.0
ENGINE_RARER = 1.5
"""So many times the gap for the engine, which is started again ever more slowly."""


class Killer:
    """Strikes each target for itself, with seconds drawn from `gap` between two times."""

    def __init__(self, site: Site, seed: int, gap: tuple[float, float]) -> None:
        self._site = site
        self._dice = random.Random(seed)
        self._gap = gap
        self.kills: Counter[str] = Counter()
        self.moments: list[tuple[float, str]] = []
        """When what was killed: seconds on the monotonic clock."""

    async def run(self, stopping: asyncio.Event) -> None:
        """Strike until told to stop, and each at least once; everything runs again afterwards."""
        site = self._site
        await asyncio.gather(
            self._strike(stopping, "engine", ENGINE_RARER, self._kill_engine, lambda: None),
            self._strike(stopping, "valkey", 1, _always(site.valkey.kill), site.valkey.start),
            self._strike(stopping, "postgres", 1, _always(site.postgres.kill), site.postgres.start),
        )

    async def _strike(
        self,
        stopping: asyncio.Event,
        name: str,
        rarer: float,
        kill: Callable[[], bool],
        start: Callable[[], object],
    ) -> None:
        dice = random.Random(self._dice.random())
        while not await _is_set(stopping, rarer * dice.uniform(*self._gap)) or not self.kills[name]:
            moment = time.monotonic()
            if not await asyncio.to_thread(kill):
                continue
            self.kills[name] += 1
            self.moments.append((moment, name))
            await asyncio.sleep(dice.uniform(0, MAX_PAUSE_S))
            await asyncio.to_thread(start)

    def _kill_engine(self) -> bool:
        """One of its processes, whichever; False where there is none, as it is being started."""
        found = self._site.engine_processes()
        with contextlib.suppress(psutil.NoSuchProcess):
            if found:
                self._dice.choice(found).kill()
                return True
        return False


def _always(kill: Callable[[], object]) -> Callable[[], bool]:
    def strike() -> bool:
        kill()
        return True

    return strike


async def _is_set(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, but not longer than this."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True
