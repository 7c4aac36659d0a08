"""What serves loadouts in vLLM's API server: composing, admission, warming, registration."""

import asyncio
import contextlib
import itertools
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from taskvectors.errors import (
    EngineUnavailable,
    InvalidFile,
    UnsupportedEngine,
    VectorLoadFailed,
    VectorNotFound,
)
from taskvectors.footprint import sparse_value_bytes
from taskvectors.kernel_choice import chosen_kernels
from taskvectors.spec import Loadout
from taskvectors.store.tiered import TieredFiles
from taskvectors.vllm_plugin import compat
from taskvectors.vllm_plugin.admission import UNANSWERED, Admission
from taskvectors.vllm_plugin.composer import ChildProcess, Composer, LocalFiles
from taskvectors.vllm_plugin.config import KEY, PluginConfig
from taskvectors.vllm_plugin.planner import Planner
from taskvectors.vllm_plugin.promoter import DRAIN_S, Admits, Gate, Promoter
from taskvectors.vllm_plugin.warming import Warmer

logger = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own, to be shown with it

STATS_TIMEOUT_S = 5.0


class LoadoutService:
    """Admission and registration for one API server.

    `state` is the state of vLLM's application. Raises UnsupportedEngine when the engine was not
    started for task vectors.
    """

    def __init__(self, state: Any) -> None:
        engine = state.engine_client
        config = PluginConfig.from_additional_config(engine.vllm_config.additional_config)
        if config is None or engine.vllm_config.lora_config is None:
            raise UnsupportedEngine(
                f"start vLLM with --enable-lora and '{KEY}' in --additional-config"
            )
        width = compat.hidden_dtype(engine.vllm_config).itemsize
        device_type = engine.vllm_config.device_config.device_type
        kernels = chosen_kernels(config.kernels, device_type)
        sparse_width = sparse_value_bytes(kernels, device_type, width)
        model = str(engine.vllm_config.model_config.model)
        compose = ChildProcess(
            config,
            value_bytes=width,
            sparse_value_bytes=sparse_width,
            base_dir=model if Path(model).is_dir() else None,
        )
        files = TieredFiles(config.store, config.tiers, with_memory=False)
        self._worker = EngineWorker(engine)
        self._composer = Composer(config, LocalFiles(files, compose))
        self._admission = Admission(
            config, self._worker, files, value_bytes=width, sparse_value_bytes=sparse_width
        )
        self._gate = Gate(self._admission)
        self._promoter = Promoter(
            self._worker,
            self._admission,
            self._gate,
            self._composer.compose,
            partial(compat.paused, engine, DRAIN_S),
        )
        self._planner = Planner(
            self._composer,
            self._admission,
            files.header,
            lambda: self._promoter.is_promoted,
            is_on=config.placement == "auto",
            is_measured=kernels == "cpu",
        )
        self._warmer = Warmer(self._admission, self._worker, config.admission_timeout_s)
        num_slots: int = engine.vllm_config.lora_config.max_loras
        self._registry = Registry(state.openai_serving_models.lora_requests, keep=2 * num_slots)

    @contextlib.asynccontextmanager
    async def serve(self, loadout: Loadout) -> AsyncIterator[None]:
        """While open, vLLM answers requests whose model is the loadout's engine name."""
        async with admitted(self._composer, self._gate, loadout) as served:
            with self._planner.placed(served) as form, self._registry.registered(loadout, form):
                yield

    async def warm(self, digests: Sequence[str], *, pin: bool) -> dict[str, str]:
        """See Warmer."""
        return await self._warmer.warm(digests, pin=pin)

    async def promote(self, loadout: Loadout) -> dict[str, Any]:
        """See Promoter."""
        return await self._promoter.promote(loadout)

    async def demote(self) -> dict[str, Any]:
        """See Promoter."""
        return await self._promoter.demote()

    async def promotion(self, *, checksum: bool) -> dict[str, Any]:
        """See Promoter."""
        return await self._promoter.state(checksum=checksum)

    async def stats(self) -> dict[str, Any]:
        """The worker's tiers, the pool, how long loads took, and what the planner did.

        Raises EngineUnavailable.
        """
        own = {
            "pool": self._admission.stats(),
            "tenants": self._admission.tenants(),
            "placement": self._planner.stats(),
        }
        return {**await self._worker.stats(), **own}


@contextlib.asynccontextmanager
async def admitted(
    composer: Composer, admission: Admits, loadout: Loadout
) -> AsyncIterator[Loadout]:
    """Compose and admit a loadout; yields the linear one that is served for it.

    A composed file that cannot be loaded is looked at, and composed again if it is damaged: once.
    """
    async with contextlib.AsyncExitStack() as stack:
        served = await composer.compose(loadout)
        try:
            await stack.enter_async_context(admission.admit(served))
        except (VectorLoadFailed, VectorNotFound, InvalidFile):
            if served is loadout:
                raise
            await composer.repair(served)
            served = await composer.compose(loadout)
            await stack.enter_async_context(admission.admit(served))
        yield served


class Registry:
    """The running loadouts in vLLM's own table of LoRA requests.

    A loadout is in `served` while requests use it, and not longer: vLLM never evicts from it.
    A request that is looked up finds the form that was registered last, so the vectors of every
    form must be held until a loadout has no users. The ids of the last `keep` forms are
    remembered, so that they find their slot again.
    """

    def __init__(self, served: dict[str, Any], keep: int) -> None:
        self._served = served
        self._keep = keep
        self._users: dict[str, int] = {}
        self._forms: dict[str, set[str]] = {}
        self._ids: OrderedDict[str, int] = OrderedDict()
        self._next_id = itertools.count(1)

    @contextlib.contextmanager
    def registered(self, loadout: Loadout, served: Loadout) -> Iterator[None]:
        """Keep `loadout` in the table while open; the worker computes `served`, a linear one.

        The prefix cache is keyed by the form's name and `served`. A linear loadout that was
        composed has a name of its own, as vLLM takes requests of one name for the same.
        """
        name = loadout.engine_name
        form = served.engine_name if loadout.is_linear else name
        if name not in self._users or self._served[name].lora_name != form:
            self._served[name] = compat.lora_request(form, self._id(form), served.canonical)
        self._users[name] = self._users.get(name, 0) + 1
        self._forms.setdefault(name, set()).add(form)
        try:
            yield
        finally:
            self._users[name] -= 1
            if not self._users[name]:
                del self._users[name], self._forms[name], self._served[name]
                self._forget_oldest()

    def _id(self, name: str) -> int:
        if name not in self._ids:
            self._ids[name] = next(self._next_id)
        self._ids.move_to_end(name)
        return self._ids[name]

    def _forget_oldest(self) -> None:
        busy = {form for forms in self._forms.values() for form in forms}
        idle = [name for name in self._ids if name not in busy]
        for name in idle[: max(0, len(self._ids) - self._keep)]:
            del self._ids[name]


class EngineWorker:
    """The worker's pool through vLLM's collective RPC, which keeps the order of calls."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    async def apply(self, evict: list[str], load: dict[str, tuple[int, int]]) -> None:
        """Evict and start loading."""
        await self._engine.collective_rpc(compat.WORKER_APPLY, args=(evict, load))

    async def status(self) -> Mapping[str, str]:
        """The state of every wanted vector."""
        states: list[dict[str, str]] = await self._engine.collective_rpc(compat.WORKER_STATUS)
        return states[0]

    async def prefetch(self, digests: list[str]) -> None:
        """Start bringing vectors into the worker's host memory."""
        await self._engine.collective_rpc(compat.WORKER_PREFETCH, args=(digests,))

    async def prefetched(self, digests: list[str]) -> Mapping[str, str]:
        """How far that has come."""
        states: list[dict[str, str]] = await self._engine.collective_rpc(
            compat.WORKER_PREFETCHED, args=(digests,)
        )
        return states[0]

    async def promote(self, asked: str, served: str) -> Mapping[str, Any]:
        """Write a loadout into the weights."""
        return await self._first(compat.WORKER_PROMOTE, asked, served)

    async def demote(self) -> Mapping[str, Any]:
        """Take it out again."""
        return await self._first(compat.WORKER_DEMOTE)

    async def promotion(self, *, checksum: bool) -> Mapping[str, Any]:
        """What is promoted."""
        return await self._first(compat.WORKER_PROMOTION, checksum)

    async def _first(self, method: str, *args: object) -> Mapping[str, Any]:
        found: list[Mapping[str, Any]] = await self._engine.collective_rpc(method, args=args)
        return found[0]

    async def stats(self) -> Mapping[str, Any]:
        """What the worker's tiers have done. Raises EngineUnavailable."""
        try:
            async with asyncio.timeout(STATS_TIMEOUT_S):
                found: list[dict[str, Any]] = await self._engine.collective_rpc(compat.WORKER_STATS)
        except Exception as error:
            logger.exception("the engine does not tell its tiers")
            raise EngineUnavailable(UNANSWERED) from error
        return found[0]
