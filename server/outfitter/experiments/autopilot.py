"""The autopilot: experiments roll back, ramp up and ship by themselves, one gateway at a time."""

import asyncio
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from outfitter.control.experiments.acts import (
    Act,
    Move,
    applied,
    next_move,
    proposed,
    withdrawn,
)
from outfitter.control.experiments.experiment import Experiment
from outfitter.control.experiments.parts import PROMOTE
from outfitter.control.experiments.status import SHIP, Status
from outfitter.errors import ApiError, CatalogUnavailable, ExperimentNotFound
from outfitter.experiments.analysis import Analysis, Analyst
from outfitter.experiments.book import AUTOMATICALLY, Decide
from outfitter.experiments.shipping import Shipment, ship
from outfitter.gateway import Gateway
from outfitter.state.database import Database
from outfitter.state.leases import Lease
from taskvectors.errors import TaskVectorError

log = logging.getLogger(__name__)

TICK_S = 5.0
LEASE_S = 20.0
"""So long after the last sign of a gateway, another one goes on with it."""
IDLE_SHARE = 20
"""An experiment rests this many times as long as its analysis took: a twentieth of the time."""
AFTER_FAILURE_S, MAX_REST_S = 60.0, 3600.0
"""What fails is tried again after the first, then after twice as long each time, up to the last."""


def lease_of(database: Database, clock: Callable[[], float] = time.time) -> Lease:
    """The right to be the one that acts; its holder is this process."""
    return Lease(database, "autopilot", f"{os.getpid()}-{uuid.uuid4().hex}", LEASE_S, clock)


class Autopilot:
    """Acts for all experiments that run. clock: Unix time, seconds.

    What a lease cannot promise (clocks that differ, a process that slept) the versions do: an act
    is made on the version that was analysed, or not at all.
    """

    def __init__(
        self,
        gateway: Gateway,
        analyst: Analyst,
        lease: Lease,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._gateway, self._analyst, self._lease = gateway, analyst, lease
        self._clock = clock
        self._is_closing = asyncio.Event()
        self._rests_until: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._is_away = False

    async def run(self) -> None:
        """Look at all of them every TICK_S, until `close`."""
        while not self._is_closing.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_closing.wait(), TICK_S)
                break
            await self._try_tick()
        with suppress(TaskVectorError):
            await asyncio.to_thread(self._lease.give_back)

    def close(self) -> None:
        """Let `run` come to its end."""
        self._is_closing.set()

    async def tick(self) -> None:
        """Look once at every experiment that runs. Raises CatalogUnavailable."""
        running = await asyncio.to_thread(self._gateway.book.all, None, Status.RUNNING)
        names = {experiment.name for experiment in running}
        self._rests_until = {k: v for k, v in self._rests_until.items() if k in names}
        self._failures = {k: v for k, v in self._failures.items() if k in names}
        for experiment in running:
            if self._is_closing.is_set() or self._rests(experiment):
                continue
            if not await asyncio.to_thread(self._lease.take):
                return
            await self._visit(experiment)

    async def _visit(self, experiment: Experiment) -> None:
        began = time.monotonic()
        rest = 0.0
        try:
            analysis = await asyncio.to_thread(self._analyst.analyse, experiment)
            await self._steer(analysis)
            self._failures.pop(experiment.name, None)
        except ExperimentNotFound:
            pass  # deleted meanwhile
        except (TaskVectorError, ApiError) as error:
            log.error("the experiment %s cannot go on by itself: %s", experiment.name, error)
            rest = self._failed(experiment.name)
        except Exception:  # it must not hold up the others
            log.exception("an error over the experiment %s", experiment.name)
            rest = self._failed(experiment.name)
        took = time.monotonic() - began
        self._rests_until[experiment.name] = time.monotonic() + max(rest, IDLE_SHARE * took)

    async def _steer(self, analysis: Analysis) -> None:
        """Do what is to be done now, if the experiment is as it was when it was analysed."""
        experiment, act, now = analysis.experiment, analysis.act, self._clock()
        move = next_move(experiment, act, now)
        if move is Move.WAIT or not await asyncio.to_thread(self._lease.take):
            return
        if act is None:
            await self._change(experiment, move, withdrawn, None)
        elif move is Move.PROPOSE:
            await self._change(experiment, move, lambda one: proposed(one, act, now), act)
        elif act.kind == SHIP:
            await self._ship(experiment, act)
        else:
            await self._change(experiment, act.kind, lambda one: applied(one, act, int(now)), act)

    async def _change(
        self, experiment: Experiment, action: str, decide: Decide, act: Act | None
    ) -> None:
        cause = {} if act is None else act.cause
        log.info("the experiment %s: %s %s", experiment.id, action, cause.get("reason", ""))
        await asyncio.to_thread(
            lambda: self._gateway.book.change(
                AUTOMATICALLY,
                None,
                experiment.name,
                str(action),
                decide,
                expected=experiment.version,
                figures=cause,
            )
        )

    async def _ship(self, experiment: Experiment, act: Act) -> None:
        assert act.variant is not None
        automatic = experiment.definition.automatic
        is_promoted = automatic.ship == PROMOTE
        wanted = Shipment(act.variant, None if is_promoted else automatic.ship_as, is_promoted)
        owner = await asyncio.to_thread(self._gateway.accounts.owner_of, experiment.name)
        log.info("the experiment %s: ship %s", experiment.id, act.reason)
        await ship(self._gateway, AUTOMATICALLY, owner, experiment, wanted, act.cause)

    def _failed(self, name: str) -> float:
        """Seconds until it is tried again."""
        before = self._failures.get(name, 0)
        self._failures[name] = before + 1
        return float(min(MAX_REST_S, AFTER_FAILURE_S * 2 ** min(before, 10)))

    def _rests(self, experiment: Experiment) -> bool:
        return time.monotonic() < self._rests_until.get(experiment.name, 0.0)

    async def _try_tick(self) -> None:
        try:
            await self.tick()
            self._is_away = False
        except CatalogUnavailable as error:
            if not self._is_away:
                log.warning("experiments do not go on by themselves for now: %s", error)
            self._is_away = True
        except Exception:  # it must not end what follows
            log.exception("an error of the autopilot itself")


@asynccontextmanager
async def steered(gateway: Gateway) -> AsyncIterator[Autopilot]:
    """The autopilot of a gateway, which runs beside its requests."""
    lease = lease_of(gateway.vectors.catalog.database)
    pilot = Autopilot(gateway, gateway.analyst, lease)
    running = asyncio.create_task(pilot.run())
    try:
        yield pilot
    finally:
        pilot.close()
        await running
