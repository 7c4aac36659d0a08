"""Looks at the gateway while it is under fire: memory, what is open, and what it says it does."""

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.benchmarks.fire.site import Site
from tests.benchmarks.growth import MIB, Sample, growth, trend, usage

PROCESS = "gateway"
OPEN = ("descriptors", "sockets", "threads")
DOING = ("running", "waiting", "streams", "tasks")
COLOURS = {"engine": "tab:red", "valkey": "tab:purple", "postgres": "tab:gray"}
KEEP_ALIVE_S = 12.0
"""Idle connections to the engine are closed after ten seconds."""
CALM_S = 60.0


class Watch:
    """Samples of one gateway; `at` is in seconds since it was made."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._process = psutil.Process(site.process.pid)
        self.began = time.monotonic()
        self.samples: list[Sample] = []

    async def run(self, stopping: asyncio.Event, interval: float) -> None:
        """Sample from time to time until told to stop."""
        while not stopping.is_set():
            self.samples.append(await asyncio.to_thread(self.sample))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), interval)

    def sample(self) -> Sample:
        """Now; what the gateway says is left out if it does not say it soon."""
        at = round(time.monotonic() - self.began, 2)
        found: Sample = {"at": at, PROCESS: usage(self._process)}
        with contextlib.suppress(httpx.HTTPError):
            found |= _doing(self.stats())
        return found

    def stats(self) -> dict[str, Any]:
        """What the gateway says that it does."""
        answer = self._site.ask("GET", "/v1/store/stats", self._site.operator)
        answer.raise_for_status()
        return dict(answer.json())

    def calm(self, most_sockets: float) -> tuple[Sample, dict[str, Any]]:
        """Wait until nothing runs and everything is written; the sample and stats of then.

        If that does not come they are what they are. Idle connections have time to be closed.
        """
        began = time.monotonic()
        while True:
            sample, stats, seconds = self.sample(), self.stats(), time.monotonic() - began
            has_closed = seconds > KEEP_ALIVE_S or sample[PROCESS]["sockets"] <= most_sockets
            if (has_closed and not busy(stats)) or seconds > CALM_S:
                return sample, stats
            time.sleep(0.5)


def busy(stats: Mapping[str, Any]) -> dict[str, int]:
    """What should be zero once nobody asks for anything, and is not."""
    quotas, gateway = stats["quotas"], stats["gateway"]
    numbers = {
        "requests_running": gateway["requests_running"],
        "streams_open": gateway["streams_open"],
        "places_running": quotas["running"],
        "places_waiting": quotas["waiting"],
        "usage_pending": stats["usage"]["pending"],
        "uploads": stats["uploads"]["in_progress"],
        "waiting_for_the_pool": stats["engine"].get("pool", {}).get("waiting", 0),
    }
    for tenant, of in quotas["tenants"].items():
        numbers |= {f"{key} of {tenant}": of[key] for key in ("running", "waiting")}
    return {name: number for name, number in numbers.items() if number}


def growths(samples: Sequence[Sample], warm_up: float) -> dict[str, Any]:
    """The trends from `warm_up` on: of memory bytes a second, of all else its number an hour."""
    warm = [sample for sample in samples if sample["at"] >= warm_up]
    if len(warm) < 5:
        return {}
    found: dict[str, Any] = {"uss": growth(samples, PROCESS, int(warm_up))}
    for name in (*OPEN, "tasks"):
        series = [(s["at"], s[PROCESS].get(name, s.get(name))) for s in warm]
        known = [(at, number) for at, number in series if number is not None]
        slope, error = trend([at for at, _ in known], [number for _, number in known])
        found[name] = {
            "each_hour": round(3600 * slope, 2),
            "standard_error": round(3600 * error, 2),
            "most": max(number for _, number in known),
        }
    return found


def plot(path: Path, samples: Sequence[Sample], moments: Sequence[tuple[float, str]]) -> None:
    """Memory, what is open and what is done, over seconds; a line where something was killed."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 1, figsize=(9, 8), sharex=True)
    at = [sample["at"] for sample in samples]
    for name in ("rss", "uss"):
        axes[0].plot(at, [sample[PROCESS][name] / MIB for sample in samples], label=name)
    for name in OPEN:
        axes[1].plot(at, [sample[PROCESS][name] for sample in samples], label=name)
    said = [sample for sample in samples if "tasks" in sample]
    for name in DOING:
        axes[2].plot([s["at"] for s in said], [s[name] for s in said], label=name)
    labels = ("memory of the gateway, MiB", "open in the gateway", "done by the gateway")
    for axis, label in zip(axes, labels, strict=True):
        for moment, target in moments:
            axis.axvline(moment, color=COLOURS[target], alpha=0.25, linewidth=0.8)
        axis.set(ylabel=label, ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small", loc="lower right")
    kills = ", ".join(f"{colour[4:]} {target}" for target, colour in COLOURS.items())
    axes[-1].set_xlabel(f"seconds; killed: {kills}")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _doing(stats: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "running": stats["quotas"]["running"],
        "waiting": stats["quotas"]["waiting"],
        "streams": stats["gateway"]["streams_open"],
        "tasks": stats["gateway"]["tasks"],
        "engine_restarts": stats["gateway"]["engine_restarts"],
    }
