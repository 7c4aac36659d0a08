"""The gateway: what all requests share, opened when the app starts, closed when it stops."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from outfitter.accounts import Accounts, By
from outfitter.aside import Aside
from outfitter.config import GatewayConfig
from outfitter.control.experiments.experiment import PREFIX, Experiment, Pin
from outfitter.control.fields import Known, known_fields, offered_paths
from outfitter.control.keys import token_of
from outfitter.control.limits import Limits
from outfitter.control.outcome import InFlight, Outcome
from outfitter.control.principal import OPEN, Principal
from outfitter.control.resolve import Plan, plan
from outfitter.control.rights import viewer_of
from outfitter.control.saved import (
    Asked,
    apply,
    check_allowed,
    check_servable,
    model_not_found,
    saved_reference,
)
from outfitter.control.surface import ROUTES
from outfitter.engine.command import engine_command, engine_environment
from outfitter.engine.relay import Relay
from outfitter.engine.supervisor import State, Supervisor
from outfitter.engine.warming import Warming
from outfitter.errors import unavailable
from outfitter.experiments.analysis import Analyst
from outfitter.experiments.book import Book
from outfitter.experiments.events.recorder import Recorder
from outfitter.experiments.registry import Registry
from outfitter.experiments.shadow import Shadows
from outfitter.experiments.variants import Variants
from outfitter.flushing import Flusher
from outfitter.observers.metrics import RequestMetrics
from outfitter.observers.tracing import Tracing, open_tracing
from outfitter.observers.usage import UsageLedger
from outfitter.opening import open_quotas, open_store, prepare_base
from outfitter.quotas.quotas import Quotas
from outfitter.slots import Slots
from outfitter.state.events import Events
from outfitter.state.records import SavedLoadout
from outfitter.state.retention import Retention
from outfitter.state.usage import UsageTable
from outfitter.vectors import Base, Vectors
from outfitter.waiting import WouldWait, at_once
from taskvectors.errors import TaskVectorError, VectorNotFound
from taskvectors.spec import RequestedLoadout

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_UPLOADS, TENANT_UPLOADS = 16, 4
"""At once, and of one tenant; pulls and fetches of cold files are among them."""
MAX_PLANNERS = 32
MAX_AUTHENTICATORS = 4


@dataclass
class Hooks:
    """How the gateway speaks to whoever started it; each can be replaced."""

    announce: Callable[[str], None] = log.info
    engine_log: Callable[[str], None] = log.info
    on_ready: Callable[[], None] = lambda: None
    on_failure: Callable[[str], None] = log.error
    on_warming: Callable[[int, int], None] = lambda done, total: None  # noqa: ARG005
    """Told how many pinned vectors of how many were tried."""
    open_vectors: Callable[[GatewayConfig], Vectors] = open_store
    prepare_base: Callable[[GatewayConfig], Base] = prepare_base
    command: Callable[[GatewayConfig, Path, str], Sequence[str]] = engine_command
    open_tracing: Callable[[], Tracing | None] = lambda: open_tracing(os.environ)


@dataclass
class Gateway:
    """The state of one gateway process; nothing in it outlives the process."""

    config: GatewayConfig
    hooks: Hooks
    vectors: Vectors
    quotas: Quotas
    base: Base | None = None
    supervisor: Supervisor | None = None
    relay: Relay | None = None
    warming: Warming | None = None
    known_fields: dict[str, Known | None] = field(default_factory=dict)
    """Of each path of the engine; None where nobody can tell."""
    offered: frozenset[str] | None = None
    """The paths that the engine answers; None where nobody can tell."""
    created: int = field(default_factory=lambda: int(time.time()))
    planners: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(MAX_PLANNERS))
    """Of their own: requests go on while other routes wait for a slow database."""
    authenticators: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(MAX_AUTHENTICATORS, "keys")
    )
    """Few, so that whoever guesses keys waits for himself."""
    aside: Aside = field(default_factory=Aside)
    uploads: Slots = field(default_factory=lambda: Slots(MAX_UPLOADS, TENANT_UPLOADS))
    observers: list[Callable[[Outcome], None]] = field(default_factory=list)
    """Told of every relayed request, once, when it has ended."""
    shadow_observers: list[Callable[[Outcome], None]] = field(default_factory=list)
    """Told of copies for shadow variants, in their stead."""
    in_flight: InFlight = field(default_factory=InFlight)
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    usage: UsageLedger = field(init=False)
    tracing: Tracing | None = None

    def __post_init__(self) -> None:
        database = self.vectors.catalog.database
        self.usage = UsageLedger(UsageTable(database).add, self.config.name)
        self.accounts = Accounts(database, self.vectors.resolver, Limits.parse)
        self.events = Events(database)
        self.recorder = Recorder(
            self.config.store / "events",
            self.events.add,
            self.events.tidy,
            self.config.prices,
            self.config.tiers.redis_url,
            self.config.tiers.redis_prefix,
        )
        self.trail = Flusher(self.accounts.flush, Retention(database, self.config.keep))
        self.book = Book(database, self.vectors.resolver)
        self.variants = Variants(self.vectors, self.accounts.owner_of, self.config.served_names)
        self.analyst = Analyst(database, self.book, self.events)
        self.shadows = Shadows(lambda: not self.quotas.num_waiting)
        if self.config.asks_for_keys:
            self.quotas.limits_of = self._limits_of
            self.quotas.namespaces_of = self.accounts.keyring.namespaces_of
        counting = (self.quotas.observe, self.metrics, self.usage, self.accounts.uses.observe)
        self.observers += (*counting, self.recorder)
        self.shadow_observers.append(self.recorder)

    def _limits_of(self, tenant: str) -> Limits:
        """What an administrator said of a tenant, over what the file of limits says."""
        told, said = self.config.limits.of(tenant), self.accounts.keyring.limits_of(tenant)
        return Limits.parse(said, over=told) if said else told

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
        self.known_fields = {one.target: known_fields(openapi, one.target) for one in ROUTES}
        self.offered = offered_paths(openapi)
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

    @property
    def registry(self) -> Registry:
        """The experiments, as requests find them."""
        return self.book.registry

    def vectors_for(self, principal: Principal) -> Vectors:
        """The store as somebody may see and change it."""
        return self.vectors.seen_by(viewer_of(principal))

    async def asked(self, principal: Principal, model: str) -> Asked:
        """What a request names as its model, as it is now.

        Raises ApiError (404), the same for what the key may not see; CatalogUnavailable.
        """
        if model in self.config.served_names:
            return Asked(model)
        if model.startswith(PREFIX):
            return Asked(model, experiment=await self._experiment(principal, model))
        reference = saved_reference(model)
        if reference is None:
            raise model_not_found(model, self.config.name)
        find = partial(self.vectors_for(principal).loadout, reference)
        try:
            saved = await self._decided(find)
        except VectorNotFound as error:
            raise model_not_found(model, self.config.name) from error
        return Asked(model, saved)

    async def _experiment(self, principal: Principal, model: str) -> Experiment:
        find = partial(self.registry.find, viewer_of(principal), model.removeprefix(PREFIX))
        try:
            return await self._decided(find)
        except VectorNotFound as error:
            raise model_not_found(model, self.config.name) from error

    async def pin(self, experiment: Experiment, variant: str) -> Pin:
        """What a variant serves, by the rights of the experiment's owner. Raises TaskVectorError.

        variant: its key.
        """
        decide = partial(self.variants.current, experiment, variant, self.ready_base())
        return await self._decided(decide)

    async def plan(
        self,
        principal: Principal,
        requested: RequestedLoadout | None,
        saved: SavedLoadout | None = None,
    ) -> Plan:
        """Decide how a request is served, by the rights of whoever asks.

        saved: the model, None for the base. Raises TaskVectorError, ApiError.
        """
        base = self.ready_base()
        decide = partial(self._decide, principal, base, requested, saved)
        return await self._decided(decide)

    async def _decided(self, decide: Callable[[], T]) -> T:
        """What `decide` returns: at once where memory knows it, else from a thread."""
        with suppress(WouldWait):
            return at_once(decide)
        loop, context = asyncio.get_running_loop(), copy_context()
        return await loop.run_in_executor(self.planners, context.run, decide)

    def _decide(
        self,
        principal: Principal,
        base: Base,
        requested: RequestedLoadout | None,
        saved: SavedLoadout | None,
    ) -> Plan:
        if saved is not None:
            if requested is not None:
                check_allowed(saved)
            self._check_servable(saved, base)
        resolve = self.vectors_for(principal).resolve
        own = plan(requested, resolve, base.fingerprint, base.modules)
        return own if saved is None else apply(saved, own)

    def _check_servable(self, saved: SavedLoadout, base: Base) -> None:
        """Whoever may see a saved loadout may use it as a whole, by the rights of its owner."""
        owner = self.vectors.seen_by(self.accounts.owner_of(saved.name))
        check_servable(saved, owner.resolve, base.fingerprint)

    async def note(
        self, by: By, action: str, subject: str, detail: Mapping[str, object] | None = None
    ) -> None:
        """Write down a change; one that is made stays made when that fails."""
        try:
            await asyncio.to_thread(self.accounts.note, by, action, subject, detail)
        except TaskVectorError as error:
            who = f"{by.principal.tenant} {by.principal.key}"
            log.error("not in the trail: %s %s by %s: %s", action, subject, who, error)

    async def authenticate(self, authorization: str | None) -> Principal:
        """Who sends this header. Raises ApiError (401, 403), CatalogUnavailable."""
        if not self.config.asks_for_keys:
            return OPEN
        token, keyring = token_of(authorization), self.accounts.keyring
        if (known := keyring.remembered(token)) is not None:
            return known
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.authenticators, keyring.principal, token)


@asynccontextmanager
async def open_gateway(config: GatewayConfig, hooks: Hooks) -> AsyncIterator[Gateway]:
    """A gateway whose engine starts in the background, and is gone afterwards.

    It is closed in the reverse order, and whatever fails the rest is closed, too: first the engine,
    so that every request has its outcome, then what writes outcomes down, then the database.
    """
    async with AsyncExitStack() as stack:
        vectors = await asyncio.to_thread(hooks.open_vectors, config)
        stack.push_async_callback(asyncio.to_thread, vectors.close)
        tracing = hooks.open_tracing()
        if tracing is not None:
            stack.push_async_callback(asyncio.to_thread, tracing.close)
        quotas = open_quotas(config, vectors)
        gateway = Gateway(config, hooks, vectors, quotas, tracing=tracing)
        for executor in (gateway.planners, gateway.authenticators):
            stack.callback(executor.shutdown, wait=False, cancel_futures=True)
        stack.callback(gateway.aside.close)
        for writer in (gateway.usage, gateway.trail, gateway.recorder):
            stack.push_async_callback(_written, writer, asyncio.create_task(writer.run()))
        stack.push_async_callback(quotas.close)
        stack.push_async_callback(_cancelled, asyncio.create_task(gateway.run()))
        stack.push_async_callback(gateway.shadows.close)
        yield gateway


async def _written(writer: UsageLedger | Flusher | Recorder, running: "asyncio.Task[None]") -> None:
    writer.close()
    await running


async def _cancelled(running: "asyncio.Task[None]") -> None:
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
