"""The worker's manager: what vLLM takes for its LoRA manager.

vLLM's scheduler believes that every loadout is a LoRA. Before each step it hands this manager
the loadouts in the batch and the loadout of every token; the manager turns them into
coefficients. It never waits on I/O, and nothing that a request says makes it raise: an exception
here would end the engine for everybody.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from taskvectors.errors import InvalidLoadout, TaskVectorError
from taskvectors.kernel_choice import chosen_kernels
from taskvectors.kernels.cpu import warm_up
from taskvectors.spec import Loadout
from taskvectors.store.tiered import TieredFiles
from taskvectors.vllm_plugin import compat, compilation
from taskvectors.vllm_plugin.arena_layers import ArenaLayers
from taskvectors.vllm_plugin.coefficients import CoefficientTable, WeightedColumn
from taskvectors.vllm_plugin.config import PluginConfig
from taskvectors.vllm_plugin.layers import StepState, hook
from taskvectors.vllm_plugin.pool import ResidentPool
from taskvectors.vllm_plugin.prefetching import Prefetcher
from taskvectors.vllm_plugin.promotion import Promotion
from taskvectors.vllm_plugin.resident_weights import ResidentWeights
from taskvectors.vllm_plugin.sites import SiteIndex
from taskvectors.vllm_plugin.slots import SlotTable
from taskvectors.vllm_plugin.staging import Stager

Ints: TypeAlias = npt.NDArray[np.int64]

logger = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own, to be shown with it


def create(vllm_config: Any, device: torch.device) -> "TaskVectorManager | None":
    """The manager for an engine; None when its additional config has no `task_vectors`."""
    config = PluginConfig.from_additional_config(vllm_config.additional_config)
    return None if config is None else TaskVectorManager(config, vllm_config, device)


def asks_to_compile(vllm_config: Any) -> bool:
    """Whether the engine's additional config has task vectors, compiled."""
    config = PluginConfig.from_additional_config(vllm_config.additional_config)
    return config is not None and config.compiled


def pinned_pages(nbytes: int) -> memoryview:
    """Memory that the device may read by itself. Raises RuntimeError where there is none."""
    pages: memoryview = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy().data
    return pages


class TaskVectorManager:
    """Duck-typed like vLLM's LRUCacheWorkerLoRAManager; a `LoRARequest` carries a loadout.

    `lora_path` is the loadout's canonical text, `lora_int_id` its identity while it is in use.
    """

    is_enabled = True

    def __init__(self, config: PluginConfig, vllm_config: Any, device: torch.device) -> None:
        self._kernels = chosen_kernels(config.kernels, device.type)
        compat.check_engine(vllm_config, self._kernels, compiled=config.compiled)
        self._config = config
        self._vllm_config = vllm_config
        self._device = device
        self._num_slots: int = vllm_config.lora_config.max_loras
        self._slots = SlotTable(self._num_slots)
        self._loadouts: dict[int, Loadout] = {}
        self._step_key: object = None
        self._version = 0
        self._state = StepState()
        self._arena: ArenaLayers | None = None
        self._files: TieredFiles
        self._prefetcher: Prefetcher
        self._pool: ResidentPool
        self._table: CoefficientTable
        self._promotion: Promotion

    def create_lora_manager(self, model: nn.Module, _vllm_config: Any = None) -> nn.Module:
        """Hook the model's layers; called once, after the weights are loaded."""
        dtype = compat.hidden_dtype(self._vllm_config)
        compat.check_model(model, dtype)
        index = SiteIndex(model, compat.is_tied(self._vllm_config))
        if self._kernels == "triton":
            self._arena = self._arena_layers(index, dtype)
        else:
            for site in index.sites:
                hook(site, self._state)
            if compilation.add_twins(model, self._state):
                logger.info("task vectors: the model is compiled twice, for steps without and with")
        if self._kernels == "cpu":
            warm_up(dtype)
        self._files = TieredFiles(
            self._config.store,
            self._config.tiers,
            with_memory=True,
            allocate=pinned_pages if self._device.type == "cuda" else None,
        )
        self._prefetcher = Prefetcher(self._files)
        self._pool = ResidentPool(
            self._files, self._stager(index, dtype), self._config.base_fingerprint, self._arena
        )
        self._table = CoefficientTable(self._num_slots + 1, self._config.max_vectors, index.parts)
        self._promotion = Promotion(
            ResidentWeights(index), self._files, self._config.base_fingerprint
        )
        logger.info("task vectors: %d layers hooked, %d slots", len(index.sites), self._num_slots)
        return model

    def _arena_layers(self, index: SiteIndex, dtype: torch.dtype) -> ArenaLayers:
        """Slots, the base's row and the poisoned one."""
        rows, tokens = self._num_slots + 2, compat.max_step_tokens(self._vllm_config)
        return ArenaLayers(index, self._config, rows, tokens, dtype, self._device)

    def _stager(self, index: SiteIndex, dtype: torch.dtype) -> Stager:
        """An arena copies from the host."""
        if self._kernels == "triton":
            return Stager(index, torch.device("cpu"), dtype, packs=False, sparse_dtype=dtype)
        return Stager(index, self._device, dtype, packs=self._kernels == "cpu")

    # The pool, by order of the API server's ledger.

    def apply(self, evict: list[str], load: dict[str, tuple[int, int]]) -> None:
        """Evict and load vectors; slots whose loadout loses a vector are given back."""
        gone = set(evict)
        for loadout_id in [i for i, loadout in self._loadouts.items() if loadout.digests & gone]:
            self._release(loadout_id)
        self._pool.apply(evict, load)

    def status(self) -> dict[str, str]:
        """The state of every vector that was asked for; see the pool's words for them."""
        if self._arena is not None:
            self._arena.arena.between_steps()
        return self._pool.status()

    def prefetch(self, digests: list[str]) -> None:
        """Bring vectors into host memory, in a thread of their own."""
        self._prefetcher.prefetch(digests)

    def prefetched(self, digests: list[str]) -> dict[str, str]:
        """How far `prefetch` has come."""
        return self._prefetcher.states(digests)

    def stats(self) -> dict[str, Any]:
        """What the tiers of this process have done; see the endpoint's `/taskvectors/stats`."""
        seconds = {"count": self._pool.num_loads, "sum": self._pool.load_seconds}
        tiers = {name: asdict(stats) for name, stats in self._files.stats().items()}
        return {"tiers": tiers, "load_seconds": seconds}

    # Promotion, while the engine is paused.

    def promote(self, asked: str, served: str) -> dict[str, Any]:
        """Write a loadout into the resident weights: its state, or `error` and `message`."""
        return self._change(lambda: self._promotion.promote(asked, Loadout.from_canonical(served)))

    def demote(self) -> dict[str, Any]:
        """Put the original weights back."""
        return self._change(self._promotion.demote)

    def promotion(self, checksum: bool) -> dict[str, Any]:
        """What is promoted; with the sha256 of all weights, if wanted."""
        state = self._promotion.state()
        return {**state, "sha256_weights": self._promotion.checksum()} if checksum else state

    def _change(self, change: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Every loadout's coefficients are relative to what is promoted: all slots are given back.

        An error is told as `error`, its class, and `message`: vLLM passes on no class.
        """
        try:
            return change()
        except TaskVectorError as error:
            return {"error": type(error).__name__, "message": str(error)}
        finally:
            self.remove_all_adapters()
            self._version += 1
            compat.release_free_memory()  # hundreds of megabytes, of a large loadout

    # What vLLM calls before each step.

    def set_active_adapters(self, requests: set[Any], mapping: Any | None) -> None:
        """Give each loadout of the batch a slot, and each row of the step its coefficients."""
        busy = {request.lora_int_id for request in requests if request}
        for request in requests:
            if request and self._slots.row(request.lora_int_id) is None:
                self._activate(request, busy)
        if mapping is None:
            return
        key = (mapping.index_mapping, mapping.prompt_mapping, self._version)
        if self._arena is not None:
            self._arena.arena.between_steps()
        if key != self._step_key:
            self._plan(mapping)
            self._step_key = key
        if self._device.type == "cuda":
            owner = self._pool if self._arena is None else self._arena
            owner.stream = torch.cuda.current_stream()

    def _plan(self, mapping: Any) -> None:
        tokens, samples = mapping.index_mapping, mapping.prompt_mapping
        if self._arena is None:
            self._state.tokens = self._gather(tokens)
            same = samples == tokens  # in a step that only decodes
            self._state.samples = self._state.tokens if same else self._gather(samples)
            return
        placed = (self._rows(mapped) for mapped in (tokens, samples))
        self._arena.write_step(*(rows[inverse] for rows, inverse in placed))

    @contextlib.contextmanager
    def prompt_positions(self, hidden_states: Tensor) -> Iterator[None]:
        """While open, the head is applied to slices of `hidden_states`, not to sampled rows."""
        if self._arena is not None:
            with self._arena.prompt_positions(hidden_states):
                yield
            return
        self._state.prompt_hidden = hidden_states
        try:
            yield
        finally:
            self._state.prompt_hidden = None

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[None]:
        """While open, a compiled model runs as for steps with loadouts, to be traced so."""
        self._state.rehearses = True
        try:
            yield
        finally:
            self._state.rehearses = False

    def _activate(self, request: Any, busy: set[int]) -> None:
        """Give a loadout a slot; one that cannot be served gets none, and so is poisoned."""
        try:
            loadout = Loadout.from_canonical(request.lora_path)
        except InvalidLoadout:
            logger.exception("%s is not served: no loadout", request.lora_name)
            return
        promoted = [replace(item, weight=-item.weight) for item in self._promotion.items]
        items = [*loadout.items, *promoted]
        columns = [(self._pool.column(item.digest), item) for item in items]
        vectors = [
            WeightedColumn(column, item.weight, item.selection)
            for column, item in columns
            if column is not None
        ]
        if len(vectors) < len(columns):  # the API server admits nothing before it is ready
            logger.error("%s is not served: a vector is not resident", request.lora_name)
            return
        if self._arena is not None and len(vectors) > self._arena.max_mixed:
            logger.error(
                "%s is not served: it mixes %d vectors; at most max_mixed = %d",
                request.lora_name, len(vectors), self._arena.max_mixed,
            )  # fmt: skip
            return
        if (gone := self._slots.make_room(busy)) is not None:
            self._loadouts.pop(gone, None)
        row = self._slots.assign(request.lora_int_id, busy)
        self._loadouts[request.lora_int_id] = loadout
        self._table.write(row, vectors)
        if self._arena is not None:
            self._arena.arena.coefficients.write(row, self._table.weights(row))
        self._version += 1

    def _gather(self, loadout_ids: Sequence[int]) -> Any:
        rows, inverse = self._rows(loadout_ids)
        return self._table.gather(rows, inverse, self._device) if rows.any() else None

    def _rows(self, loadout_ids: Sequence[int]) -> tuple[Ints, Ints]:
        """Table rows of the distinct ids, and which of them each has.

        0, the base, for id 0; poison for an id without a slot.
        """
        if loadout_ids and loadout_ids.count(loadout_ids[0]) == len(loadout_ids):
            distinct, inverse = loadout_ids[:1], np.zeros(len(loadout_ids), np.int64)
        else:
            ids = np.asarray(loadout_ids, dtype=np.int64)
            found, inverse = np.unique(ids, return_inverse=True)
            distinct = found.tolist()
        poison = self._table.poison_row
        rows = [self._slots.row(i) or poison if i > 0 else 0 for i in distinct]
        return np.asarray(rows, dtype=np.int64), inverse

    def _release(self, loadout_id: int) -> None:
        row = self._slots.release(loadout_id)
        self._loadouts.pop(loadout_id, None)
        if row is not None:
            self._clear(row)

    def _clear(self, row: int) -> None:
        self._table.clear(row)
        if self._arena is not None:
            self._arena.arena.coefficients.clear(row)
        self._version += 1

    # The rest of vLLM's LoRA manager.

    def add_adapter(self, _request: Any) -> bool:
        """Loadouts get their slot when a step needs them; there is nothing to do before."""
        return True

    def remove_adapter(self, adapter_id: int) -> bool:
        """Give the slot of a loadout back."""
        known = self._slots.row(adapter_id) is not None
        self._release(adapter_id)
        return known

    def remove_all_adapters(self) -> None:
        """Give all slots back."""
        for loadout_id in list(self._slots):
            self._release(loadout_id)

    def list_adapters(self) -> set[int]:
        """The ids of the loadouts that have a slot."""
        return set(self._slots)

    def pin_adapter(self, _adapter_id: int) -> bool:
        """Pinning has no meaning for loadouts: a slot costs one row of coefficients."""
        return False

    def supports_tower_connector_lora(self) -> bool:
        """Task vectors of a vision tower are not served."""
        return False

    # Warm-up: vLLM measures memory with stand-in LoRAs before any vector is resident.

    @contextlib.contextmanager
    def dummy_lora_cache(self) -> Iterator[None]:
        """Nothing is cached: a stand-in is an empty row."""
        yield

    def add_dummy_lora(self, request: Any, rank: int) -> bool:  # noqa: ARG002 (vLLM's keyword)
        """Take a slot with all weights zero."""
        if self._slots.row(request.lora_int_id) is None:
            self._clear(self._slots.assign(request.lora_int_id, busy=()))
        return True

    def get_dummy_lora_warmup_rank(self, default_rank: int) -> int:
        """vLLM's own default."""
        return default_rank
