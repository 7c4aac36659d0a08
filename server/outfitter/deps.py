"""What the routes depend on: opened when the app starts, closed when it stops."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from outfitter.config import GatewayConfig
from outfitter.control.fields import OPENAI_FIELDS, known_fields
from outfitter.control.outcome import InFlight, Outcome
from outfitter.control.principal import OPEN, Principal
from outfitter.control.resolve import Plan, plan
from outfitter.engine.command import engine_command, engine_environment
from outfitter.engine.relay import Relay
from outfitter.engine.supervisor import State, Supervisor
from outfitter.engine.warming import Warming
from outfitter.errors import unavailable
from outfitter.observers.metrics import RequestMetrics
from outfitter.observers.tracing import Tracing, open_tracing
from outfitter.observers.usage import UsageLedger
from outfitter.state.usage import UsageTable
from outfitter.vectors import Base, Vectors, open_vectors
from outfitter.waiting import WouldWait, at_once
from taskvectors.checkpoint import cached_fingerprint, load_base_shapes
from taskvectors.errors import TaskVectorError
from taskvectors.spec import RequestedLoadout

log = logging.getLogger(__name__)

MAX_UPLOADS = 4
MAX_PLANNERS = 32


@dataclass
class Hooks:
    """How the gateway speaks to whoever started it; each can be replaced."""

    announce: Callable[[str], None] = log.info
    engine_log: Callable[[str], None] = log.info
    on_ready: Callable[[], None] = lambda: None
    on_failure: Callable[[str], None] = log.error
    on_warming: Callable[[int, int], None] = lambda done, total: None  # noqa: ARG005
    """Told how many pinned vectors of how many were tried."""
    open_vectors: Callable[[GatewayConfig], Vectors] = lambda config: open_store(config)
    prepare_base: Callable[[GatewayConfig], Base] = lambda config: prepare_base(config)
    command: Callable[[GatewayConfig, Path, str], Sequence[str]] = engine_command
    open_tracing: Callable[[], Tracing | None] = lambda: open_tracing(os.environ)


@dataclass
class Gateway:
    """The state of one gateway process; nothing in it outlives the process."""

    config: GatewayConfig
    hooks: Hooks
    vectors: Vectors
    base: Base | None = None
    supervisor: Supervisor | None = None
    relay: Relay | None = None
    warming: Warming | None = None
    known_fields: dict[str, frozenset[str] | None] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))
    planners: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(MAX_PLANNERS))
    """Of their own: requests go on while other routes wait for a slow database."""
    uploads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_UPLOADS))
    observers: list[Callable[[Outcome], None]] = field(default_factory=list)
    """Told of every relayed request, once, when it has ended."""
    in_flight: InFlight = field(default_factory=InFlight)
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    usage: UsageLedger = field(init=False)
    tracing: Tracing | None = None

    def __post_init__(self) -> None:
        table = UsageTable(self.vectors.catalog.database)
        self.usage = UsageLedger(table.add, self.config.name)
        self.observers += [self.metrics, self.usage]

    async def run(self) -> None:
        """Prepare the base and keep the engine alive, until cancelled or given up."""
        try:
            self.hooks.announce(f"fingerprinting the base in {self.config.model}")
            self.base = await asyncio.to_thread(self.hooks.prepare_base, self.config)
            self.hooks.announce(f"base {self.config.name}, fingerprint {self.base.fingerprint}")
            await self._supervise(self.base)
            self.hooks.on_failure("the engine could not be started; its log is above")
        except (TaskVectorError, OSError) as error:
            self.hooks.on_failure(f"cannot serve {self.config.model}: {error}")
        except Exception as error:
            log.exception("an error of the gateway itself")
            self.hooks.on_failure(f"an error of the gateway itself: {error!r}; its log says more")

    async def _supervise(self, base: Base) -> None:
        self.supervisor = Supervisor(
            lambda socket: self.hooks.command(self.config, socket, base.fingerprint),
            engine_environment(os.environ, self.config.tiers),
            self.hooks.engine_log,
            self.hooks.announce,
            self._on_ready,
        )
        self.relay = Relay(self.supervisor.socket)
        self.warming = Warming(
            self.relay, self.vectors.resolve, self.hooks.announce, self.hooks.on_warming
        )
        self.hooks.announce("starting the engine")
        try:
            await self.supervisor.run()
        finally:
            await self.warming.close()
            await self.relay.close()

    async def _on_ready(self) -> None:
        assert self.relay is not None
        openapi = await self.relay.openapi()
        self.known_fields = {name: known_fields(openapi, name) for name in OPENAI_FIELDS}
        self.hooks.on_ready()
        assert self.warming is not None
        self.warming.begin(self.config.pins)

    def prefetch(self, digests: Iterable[str]) -> None:
        """Let the engine load vectors that may soon be asked for; nobody waits for it."""
        if self.reason_not_ready is None and self.warming is not None:
            self.warming.prefetch(digests)

    @property
    def reason_not_ready(self) -> str | None:
        """Why requests cannot be served now; None when they can."""
        if self.base is None:
            return "the base is being read and fingerprinted"
        state = self.supervisor.state if self.supervisor is not None else State.NEW
        return None if state is State.READY else state.value

    def ready_relay(self) -> Relay:
        """The way to the engine; raises ApiError (503) while there is none."""
        if self.reason_not_ready is not None or self.relay is None:
            raise unavailable(self.reason_not_ready or State.NEW.value, "engine_not_ready")
        return self.relay

    def ready_base(self) -> Base:
        """The base; raises ApiError (503) while it is not known yet."""
        if self.base is None:
            raise unavailable(self.reason_not_ready or "", "engine_not_ready")
        return self.base

    async def plan(self, requested: RequestedLoadout | None) -> Plan:
        """Decide how a request is served; what memory does not know is read in a thread."""
        base = self.ready_base()
        decide = partial(plan, requested, self.vectors.resolve, base.fingerprint, base.modules)
        with suppress(WouldWait):
            return at_once(decide)
        loop, context = asyncio.get_running_loop(), copy_context()
        return await loop.run_in_executor(self.planners, context.run, decide)


@asynccontextmanager
async def open_gateway(config: GatewayConfig, hooks: Hooks) -> AsyncIterator[Gateway]:
    """A gateway whose engine starts in the background, and is gone afterwards."""
    vectors = await asyncio.to_thread(hooks.open_vectors, config)
    gateway = Gateway(config, hooks, vectors, tracing=hooks.open_tracing())
    task, usage = asyncio.create_task(gateway.run()), asyncio.create_task(gateway.usage.run())
    try:
        yield gateway
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        gateway.usage.close()
        await usage
        gateway.planners.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(vectors.close)
        if gateway.tracing is not None:
            await asyncio.to_thread(gateway.tracing.close)


def open_store(config: GatewayConfig) -> Vectors:
    """The store that a gateway was told to use; raises TaskVectorError, InvalidConfig, OSError."""
    return open_vectors(
        config.store,
        database_url=config.database_url,
        tiers=config.tiers,
        trust=config.trust,
        quarantine_bytes=config.quarantine_bytes,
    )


def prepare_base(config: GatewayConfig) -> Base:
    """Read what task vectors are checked against; the fingerprint is cached."""
    shapes = load_base_shapes(config.model)
    return Base(cached_fingerprint(config.model, cache_home() / "fingerprints"), dict(shapes))


def cache_home() -> Path:
    """Outfitter's folder under the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "outfitter"


async def _gateway(request: Request) -> Gateway:
    gateway = request.app.state.gateway
    assert isinstance(gateway, Gateway)
    return gateway


GatewayDep = Annotated[Gateway, Depends(_gateway)]


async def _principal(request: Request) -> Principal:
    request.state.principal = OPEN  # for the log
    return OPEN


PrincipalDep = Annotated[Principal, Depends(_principal)]
