"""One run: load and kills, calm, load again and SIGTERM; then the books are closed."""

import asyncio
import math
import random
import re
import signal
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.fire import sums
from tests.benchmarks.fire.asks import quick
from tests.benchmarks.fire.book import Book, End
from tests.benchmarks.fire.clients import HANG_S, Clients
from tests.benchmarks.fire.gateway import DRAIN_S, MAX_RUNNING, MAX_WAIT_S, MAX_WAITING
from tests.benchmarks.fire.killer import Killer
from tests.benchmarks.fire.publisher import Publisher
from tests.benchmarks.fire.site import TENANTS, Site, serving
from tests.benchmarks.fire.watch import PROCESS, Watch, busy, growths
from tests.benchmarks.growth import Sample

LAST_LOAD_S = 3.0
"""How long the load goes on before SIGTERM, and how much longer it may take to end."""
TRAIL_S = 20
"""How long the trail of loadouts may take to be written; nothing tells that it is."""
ENGINE_STOP_S = 25.0
"""Of the engine, after the gateway has drained."""
SLACK = {"tasks": 4, "sockets": 20, "descriptors": 24, "threads": 60}
"""More of it when calm again than before the load: pools of connections and of threads fill."""
_TROUBLE = re.compile(
    r"^(Traceback .*|.*an error of the gateway itself.*|.*never retrieved.*)$", re.M
)


@dataclass(frozen=True)
class Plan:
    """How long and how hard. gap: least and most seconds between two kills of one target."""

    seconds: float
    seed: int
    clients: int = 96
    model: Path | None = None

    @property
    def gap(self) -> tuple[float, float]:
        """Longer where there is more time: an engine takes up to 30 s to be started again."""
        least = min(20.0, max(1.5, self.seconds / 25))
        return least, min(100.0, max(3.0, self.seconds / 6))

    @property
    def interval(self) -> float:
        """Seconds between two samples."""
        return min(5.0, max(1.0, self.seconds / 120))


def fight(plan: Plan) -> tuple[dict[str, Any], Book]:
    """The whole run; the result, and the books with their problems."""
    with (
        tempfile.TemporaryDirectory(prefix="fire-") as folder,
        serving(Path(folder), plan.model) as site,
    ):
        battle = Battle(site, plan)
        asyncio.run(battle.run())
        return battle.result(), battle.book


class Battle:
    """Everybody who takes part in one run."""

    def __init__(self, site: Site, plan: Plan) -> None:
        self._site, self._plan = site, plan
        self.book = Book()
        self._clients = Clients(site, self.book, plan.seed)
        self._killer = Killer(site, plan.seed + 1, plan.gap)
        self._publisher = Publisher(site, self.book, plan.seed + 2)
        self._watch = Watch(site)
        self._idle: list[Sample] = []
        self._stats: dict[str, Any] = {}
        self._calm: dict[str, Any] = {}
        self._found: dict[str, Any] = {}
        self._drained_s = 0.0

    async def run(self) -> None:
        """All of it, in order."""
        await self._know_keys()
        await self._calm_down()
        await self._fire()
        await self._calm_down()
        await self._stop()
        self._close_books()

    async def _know_keys(self) -> None:
        """A key outlasts an outage once it is known."""
        async with self._clients.asking(0):
            for tenant in TENANTS:
                ask = quick(random.Random(0), tenant, self._site.model_name)
                ending = await self._clients.one(tenant, ask)
                assert ending.end is End.ANSWERED, ending

    async def _fire(self) -> None:
        stopping = asyncio.Event()
        async with self._clients.asking(self._plan.clients):
            tasks = [
                asyncio.create_task(self._killer.run(stopping)),
                asyncio.create_task(self._publisher.run(stopping)),
                asyncio.create_task(self._watch.run(stopping, self._plan.interval)),
            ]
            await asyncio.wait(
                tasks, timeout=self._plan.seconds, return_when=asyncio.FIRST_EXCEPTION
            )
            stopping.set()
            await asyncio.gather(*tasks)

    async def _calm_down(self) -> None:
        before = self._idle[0][PROCESS]["sockets"] + SLACK["sockets"] if self._idle else math.inf
        sample, self._stats = await asyncio.to_thread(self._watch.calm, before)
        self._idle.append(sample)
        if left := busy(self._stats):
            self.book.problem(f"nobody asks, and still: {left}")
        for _ in range(TRAIL_S):
            self._calm = await asyncio.to_thread(sums.written, self._site)
            if sum(self._calm["loadout_use"].values()) >= sums.admitted(self._stats):
                break
            await asyncio.sleep(1)

    async def _stop(self) -> None:
        """SIGTERM while there is load: everybody is answered or told, and the process ends."""
        await asyncio.to_thread(self._site.wait_ready)
        below = self._site.process.children(recursive=True)
        async with self._clients.asking(self._plan.clients):
            await asyncio.sleep(LAST_LOAD_S)
            self._clients.sure_until = time.monotonic()
            await asyncio.to_thread(self._site.wait_ready)  # who came before is let in before
            ended = time.monotonic()
            self._site.process.send_signal(signal.SIGTERM)
            status = await asyncio.to_thread(self._wait)
            self._drained_s = time.monotonic() - ended
        if status != 0:
            self.book.problem(f"SIGTERM ended the gateway with status {status}, not 0")
        if left := [process for process in below if process.is_running()]:
            self.book.problem(f"the gateway left processes behind: {left}")

    def _wait(self) -> int | None:
        try:
            return int(self._site.process.wait(DRAIN_S + ENGINE_STOP_S))
        except psutil.TimeoutExpired:
            return None

    def _close_books(self) -> None:
        book, log = self.book, self._site.log
        self._found = sums.written(self._site)
        sums.check_usage(book, self._found)
        sums.check_audit(book, self._found, self._publisher.saved, log)
        sums.check_quotas(book, self._stats, self._plan.seconds / 60)
        sums.check_charged(book, self._stats, self._calm)
        self._check_promised()
        self._check_idle()
        if troubles := _TROUBLE.findall(log):
            book.problem(f"the gateway's log has {len(troubles)} of {troubles[0][:200]!r}")

    def _check_promised(self) -> None:
        missing = sums.missing(self._site, self._publisher.promised)
        for reference in missing:
            self.book.problem(f"{reference} was acknowledged, and is not there")

    def _check_idle(self) -> None:
        before, after = (_levels(sample) for sample in self._idle)
        for name, slack in SLACK.items():
            if after[name] > before[name] + slack:
                self.book.problem(f"{after[name]} {name} when calm again, {before[name]} before")

    def result(self) -> dict[str, Any]:
        """What was found, for the file."""
        book, watch = self.book, self._watch
        kills = [(round(at - watch.began, 2), name) for at, name in self._killer.moments]
        return {
            "settings": _settings(self._plan),
            "may_differ": "usage: by `unheard`, requests left or not taken before an answer began",
            "requests": sum(book.sent.values()),
            "ends": book.by_end(),
            "kinds": book.by_kind(),
            "problems": book.problems,
            "num_problems": book.num_problems,
            "longest_s": round(book.longest_s, 2),
            "bound_s": HANG_S,
            "kills": dict(self._killer.kills),
            "sent": {tenant: _sent(book, tenant) for tenant in TENANTS},
            "written": self._found,
            "sigterm_to_exit_s": round(self._drained_s, 2),
            "idle": {"before": _levels(self._idle[0]), "after": _levels(self._idle[-1])},
            "growth": growths(watch.samples, self._plan.seconds / 4),
            "killed_at": kills,
            "samples": watch.samples,
        }


def _levels(sample: Mapping[str, Any]) -> dict[str, int]:
    return {**sample[PROCESS], "tasks": sample["tasks"]}


def _sent(book: Book, tenant: str) -> dict[str, int]:
    return {
        "sent": book.sent[tenant],
        "heard": book.relayed[tenant],
        "unheard": book.unheard[tenant],
        "tokens_told": book.tokens[tenant],
    }


def _settings(plan: Plan) -> dict[str, Any]:
    return {
        "seconds": plan.seconds,
        "clients": plan.clients,
        "gap_s": plan.gap,
        "max_running": MAX_RUNNING,
        "max_waiting": MAX_WAITING,
        "max_wait_s": MAX_WAIT_S,
        "drain_s": DRAIN_S,
        "tenants": TENANTS,
    }
