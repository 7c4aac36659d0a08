"""What the routes depend on: opened when the app starts, closed when it stops."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

from fastapi import Depends, Request

from outfitter.accounts import Accounts, By
from outfitter.config import GatewayConfig
from outfitter.control.fair_queue import FairQueue
from outfitter.control.fields import Known, known_fields, offered_paths
from outfitter.control.keys import sent_key, token_of
from outfitter.control.limits import Limits
from outfitter.control.outcome import InFlight, Outcome
from outfitter.control.principal import OPEN, Principal, Scope
from outfitter.control.resolve import Plan, plan
from outfitter.control.rights import check_scope, viewer_of
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
from outfitter.observers.metrics import RequestMetrics
from outfitter.observers.tracing import Tracing, open_tracing
from outfitter.observers.usage import UsageLedger
from outfitter.quotas.counters import Counters
from outfitter.quotas.quotas import Quotas
from outfitter.state.records import SavedLoadout
from outfitter.state.usage import UsageTable
from outfitter.vectors import Base, Vectors, open_vectors
from outfitter.waiting import WouldWait, at_once
from taskvectors.checkpoint import cached_fingerprint, load_base_shapes
from taskvectors.errors import TaskVectorError, VectorNotFound
from taskvectors.spec import RequestedLoadout

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_UPLOADS = 4
MAX_PLANNERS = 32
MAX_AUTHENTICATORS = 4
FLUSH_S = 5.0
"""How often the trail of loadouts is written down."""
_READING = ("GET", "HEAD", "OPTIONS")


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
    uploads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_UPLOADS))
    observers: list[Callable[[Outcome], None]] = field(default_factory=list)
    """Told of every relayed request, once, when it has ended."""
    in_flight: InFlight = field(default_factory=InFlight)
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    usage: UsageLedger = field(init=False)
    tracing: Tracing | None = None

    def __post_init__(self) -> None:
        database = self.vectors.catalog.database
        self.usage = UsageLedger(UsageTable(database).add, self.config.name)
        self.accounts = Accounts(database, self.vectors.resolver, Limits.parse)
        if self.config.asks_for_keys:
            self.quotas.limits_of = self._limits_of
            self.quotas.namespaces_of = self.accounts.keyring.namespaces_of
        counting = (self.quotas.observe, self.metrics, self.usage, self.accounts.uses.observe)
        self.observers += counting

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

    def vectors_for(self, principal: Principal) -> Vectors:
        """The store as somebody may see and change it."""
        return self.vectors.seen_by(viewer_of(principal))

    async def asked(self, principal: Principal, model: str) -> Asked:
        """The base or the saved loadout that a request names as its model, as it is now.

        Raises ApiError (404), the same for what the key may not see; CatalogUnavailable.
        """
        if model in self.config.served_names:
            return Asked(model)
        reference = saved_reference(model)
        if reference is None:
            raise model_not_found(model, self.config.name)
        find = partial(self.vectors_for(principal).loadout, reference)
        try:
            saved = await self._decided(find)
        except VectorNotFound as error:
            raise model_not_found(model, self.config.name) from error
        return Asked(model, saved)

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

    async def keep_trail(self) -> None:
        """Write down which key used which loadout, again and again, until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_S)
            await asyncio.to_thread(self.accounts.flush)


@asynccontextmanager
async def open_gateway(config: GatewayConfig, hooks: Hooks) -> AsyncIterator[Gateway]:
    """A gateway whose engine starts in the background, and is gone afterwards."""
    vectors = await asyncio.to_thread(hooks.open_vectors, config)
    quotas = open_quotas(config, vectors)
    gateway = Gateway(config, hooks, vectors, quotas, tracing=hooks.open_tracing())
    tasks = [asyncio.create_task(gateway.run()), asyncio.create_task(gateway.keep_trail())]
    usage = asyncio.create_task(gateway.usage.run())
    try:
        yield gateway
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        await quotas.close()
        gateway.usage.close()
        await usage
        for executor in (gateway.planners, gateway.authenticators):
            executor.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(gateway.accounts.flush)
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


def open_quotas(config: GatewayConfig, vectors: Vectors) -> Quotas:
    """The quotas of a gateway; what is counted is shared through Redis if it has one."""
    return Quotas(
        config.limits.of,
        Counters(config.tiers.redis_url, config.tiers.redis_prefix),
        FairQueue(config.max_running, config.max_waiting, time.monotonic),
        vectors.catalog.stored,
        max_wait_s=config.max_wait_s,
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


async def _principal(request: Request, gateway: GatewayDep) -> Principal:
    principal = await gateway.authenticate(sent_key(request.headers))
    request.state.principal = principal  # for the log
    return principal


PrincipalDep = Annotated[Principal, Depends(_principal)]


async def _vectors(gateway: GatewayDep, principal: PrincipalDep) -> Vectors:
    return gateway.vectors_for(principal)


VectorsDep = Annotated[Vectors, Depends(_vectors)]
"""The store as whoever asks may see and change it."""


async def _by(request: Request, principal: PrincipalDep) -> By:
    return By(principal, request.state.request_id)


ByDep = Annotated[By, Depends(_by)]


@dataclass(frozen=True)
class Needs:
    """A dependency of a router: the key must have one of the scopes, else ApiError (401, 403).

    read: for requests that change nothing. write: for the others.
    """

    read: tuple[Scope, ...]
    write: tuple[Scope, ...]

    async def __call__(self, request: Request, principal: PrincipalDep) -> None:
        """Raises ApiError (403)."""
        check_scope(principal, self.read if request.method in _READING else self.write)
