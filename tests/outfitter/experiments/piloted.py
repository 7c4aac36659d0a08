"""A gateway whose autopilot the test steers, with a clock of the test's and events at will."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from outfitter.control.experiments.event import Event
from outfitter.experiments.analysis import Analyst
from outfitter.experiments.autopilot import Autopilot, lease_of
from tests.outfitter.harness import Running

X = "/v1/experiments"


@dataclass
class Clock:
    """Unix time, as much later as a test says."""

    ahead: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@dataclass
class Piloted:
    """A gateway, its loop, and as many autopilots as a test makes."""

    gateway: Running
    loop: asyncio.AbstractEventLoop
    clock: Clock = field(default_factory=Clock)

    def pilot(self) -> Autopilot:
        """One with a lease of its own, as another gateway would have."""
        inner = self.gateway.inner
        database = inner.vectors.catalog.database
        analyst = Analyst(database, inner.book, inner.events, self.clock)
        return Autopilot(inner, analyst, lease_of(database, self.clock), self.clock)

    def tick(self, pilot: Autopilot) -> None:
        """Let it look once, at all of them."""
        pilot._rests_until.clear()
        asyncio.run_coroutine_threadsafe(pilot.tick(), self.loop).result(60)

    def give_back(self, pilot: Autopilot) -> None:
        """Let go of its lease."""
        pilot._lease.give_back()

    def see(
        self,
        experiment: str,
        units: Mapping[str, int],
        *,
        version: int = 2,
        first: int = 0,
        grade: Mapping[str, float] | None = None,
        latency: Mapping[str, float] | None = None,
    ) -> None:
        """Units of each variant, a request each. grade: the share that is graded good."""
        given = events(
            experiment,
            units,
            self.clock(),
            version,
            first,
            grade=grade or {},
            latency=latency or {},
        )
        self.gateway.inner.events.add(given)


def events(
    experiment: str,
    units: Mapping[str, int],
    at: float,
    version: int = 2,
    first: int = 0,
    *,
    grade: Mapping[str, float],
    latency: Mapping[str, float],
) -> list[Event]:
    """A request of each unit; without more, half of them are good and all take about a second."""
    found = []
    for key, num in units.items():
        for place in range(num):
            name = f"{key}-{version}-{first + place}"
            found.append(
                Event(
                    experiment=experiment,
                    request_id=name,
                    tenant="open",
                    variant=key,
                    version=version,
                    unit=name,
                    at=at,
                    is_counted=True,
                    is_shadow=False,
                    status=200,
                    error=0,
                    latency_s=latency.get(key, 1.0) + 0.1 * (place % 7 - 3),
                    first_token_s=None,
                    inter_token_s=None,
                    prompt_tokens=5,
                    completion_tokens=7,
                    cached_tokens=0,
                    cost=0.0,
                    finish_reason="stop",
                    grades={"good": float(place < grade.get(key, 0.5) * num)},
                )
            )
    return found


def regression(experiment: str) -> list[Event]:
    """A variant that is 40 % slower."""
    units, slow = {"control": 300, "warm": 300}, {"control": 1.0, "warm": 1.4}
    return events(experiment, units, time.time(), grade={}, latency=slow)


def begun(
    client: httpx.Client, name: str, variants: tuple[str, ...] = ("warm",), **more: Any
) -> dict:
    """An experiment that runs: the control is the base, each variant the vector with a weight."""
    mixes = [{"key": key, "task_vectors": {"warm": 0.5 + k}} for k, key in enumerate(variants)]
    body = {
        "name": name,
        "variants": [{"key": "control", "model": "base-model"}, *mixes],
        "metrics": [{"name": "good", "source": "grader", "kind": "proportion"}],
        "graders": [{"name": "good", "kind": "regex", "pattern": "x"}],
        "primary": "good",
        "guardrails": [{"metric": "latency_s", "margin": 0.1}],
        **more,
    }
    answer = client.post(X, json=body)
    assert answer.status_code == 201, answer.text
    answer = client.post(f"{X}/{name}/start")
    assert answer.status_code == 200, answer.text
    return answer.json()


def shown(client: httpx.Client, name: str) -> dict:
    """As it is now."""
    return client.get(f"{X}/{name}").json()


def history(client: httpx.Client, name: str) -> list[dict]:
    """Its versions, newest first."""
    return client.get(f"{X}/{name}/versions").json()["data"]
