"""Everything that depends on a vLLM version or on names inside vLLM (0.26 to 0.33)."""

import asyncio
import contextlib
import copy
import ctypes
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import torch
from torch import Tensor, nn

from taskvectors.errors import UnsupportedEngine
from taskvectors.kernel_choice import Kernels

WORKER_APPLY = "taskvectors_apply"
WORKER_STATUS = "taskvectors_status"
WORKER_PREFETCH = "taskvectors_prefetch"
WORKER_PREFETCHED = "taskvectors_prefetched"
WORKER_STATS = "taskvectors_stats"
WORKER_PROMOTE = "taskvectors_promote"
WORKER_DEMOTE = "taskvectors_demote"
WORKER_PROMOTION = "taskvectors_promotion"
READ_ROWS = 256


def install(create: Callable[[Any, torch.device], Any | None]) -> None:
    """Patch this process: the worker's LoRA manager, the worker's methods, and metric labels.

    `create(vllm_config, device)` makes the manager; where it returns None, vLLM's own
    `LRUCacheWorkerLoRAManager` stays in place.
    """
    import vllm.v1.worker.lora_model_runner_mixin as mixin

    if getattr(mixin, "_taskvectors_installed", False):
        return
    stock = mixin.LRUCacheWorkerLoRAManager

    def manager(vllm_config: Any, device: torch.device, *args: Any, **kwargs: Any) -> Any:
        ours = create(vllm_config, device)
        if ours is None:
            return stock(vllm_config, device, *args, **kwargs)
        _add_prompt_logprobs_hook()
        return ours

    mixin.LRUCacheWorkerLoRAManager = manager
    mixin._taskvectors_installed = True
    _add_worker_methods()
    _bound_metric_labels()


def check_engine(vllm_config: Any, kernels: Kernels, *, compiled: bool) -> None:
    """Raise UnsupportedEngine for a configuration whose answers would be wrong.

    Triton's kernels are operators over fixed addresses, so they may be compiled and captured: read
    in vLLM 0.32, and not run. The V2 runner computes prompt logprobs where no hook sees it.
    """
    parallel = vllm_config.parallel_config
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"):
        size = getattr(parallel, name, 1)
        if size != 1:
            raise UnsupportedEngine(f"{name} must be 1 with task vectors, not {size}")
    if getattr(parallel, "_api_process_count", 1) > 1:
        raise UnsupportedEngine("--api-server-count must be 1: one ledger decides for the pool")
    unsupported = {
        "speculative decoding": vllm_config.speculative_config is not None,
        "--enable-prompt-embeds": getattr(vllm_config.model_config, "enable_prompt_embeds", False),
        "a multimodal model": vllm_config.model_config.is_multimodal_model,
        "vLLM's V2 model runner (set VLLM_USE_V2_MODEL_RUNNER=0)": getattr(
            vllm_config, "use_v2_model_runner", False
        ),
    }
    for what, is_used in unsupported.items():
        if is_used:
            raise UnsupportedEngine(f"{what} does not work with task vectors yet")
    if kernels != "triton":
        _check_mode(vllm_config.compilation_config, compiled=compiled)


def _check_mode(compilation: Any, *, compiled: bool) -> None:
    """The mode that vLLM chooses on a CPU can be given a second trace; the others are unknown."""
    mode = str(getattr(compilation.mode, "name", compilation.mode))
    if mode not in ("NONE", "0", "None", *(("DYNAMO_TRACE_ONCE",) if compiled else ())):
        raise UnsupportedEngine(
            f"compilation mode {mode} does not see task vectors; start with --enforce-eager"
        )


def max_step_tokens(vllm_config: Any) -> int:
    """Most tokens of a step, with what a captured graph pads it to."""
    captured = getattr(vllm_config.compilation_config, "max_cudagraph_capture_size", None) or 0
    scheduler = vllm_config.scheduler_config
    return int(max(scheduler.max_num_batched_tokens, scheduler.max_num_seqs, captured))


def check_device_memory(device: torch.device, nbytes: int) -> None:
    """Raise UnsupportedEngine when CUDA has less than `nbytes` free."""
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if nbytes > free:
        raise UnsupportedEngine(
            f"pool_bytes asks for {nbytes} bytes on the device, and {free} are free: lower it"
        )


def hidden_dtype(vllm_config: Any) -> torch.dtype:
    """The dtype that activations have."""
    dtype = vllm_config.model_config.dtype
    assert isinstance(dtype, torch.dtype)
    return dtype


def is_tied(vllm_config: Any) -> bool:
    """Whether the head shares the embedding's weight."""
    text_config = vllm_config.model_config.hf_config.get_text_config()
    return bool(getattr(text_config, "tie_word_embeddings", False))


def check_model(model: nn.Module, dtype: torch.dtype) -> None:
    """Raise UnsupportedEngine when the head is computed in a way that the hook cannot see."""
    for module in model.modules():
        head_dtype = getattr(module, "head_dtype", None)
        if head_dtype not in (None, dtype):
            raise UnsupportedEngine(f"head_dtype {head_dtype} differs from the model's {dtype}")


def site_kind(module: nn.Module) -> Any:
    """linear, embedding, head or norm; None for a module that is not hooked."""
    from vllm.model_executor.layers import layernorm
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        VocabParallelEmbedding,
    )

    if isinstance(module, ParallelLMHead):
        return "head"
    if isinstance(module, VocabParallelEmbedding):
        return "embedding"
    if isinstance(module, LinearBase):
        return "linear"
    norms = (layernorm.RMSNorm, getattr(layernorm, "GemmaRMSNorm", layernorm.RMSNorm))
    has_weight = getattr(module, "has_weight", True)
    return "norm" if isinstance(module, norms) and has_weight else None


def output_sizes(module: Any, kind: str) -> list[int]:
    """Output rows of each part of `module`, in order."""
    if kind == "norm":
        return [module.weight.shape[0]]
    if kind in ("embedding", "head"):
        return [module.org_vocab_size]
    return list(getattr(module, "output_sizes", None) or [module.output_size])


def checkpoint_renamer(model: Any) -> Callable[[str], str]:
    """From a parameter name in the checkpoint to the one in vLLM's model, before fusing."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    if mapper is None:
        return lambda name: name
    if hasattr(mapper, "get_rename_mapper"):
        mapper = mapper.get_rename_mapper()

    def rename(name: str) -> str:
        renamed = mapper.apply_list([name])
        return renamed[0] if renamed else name

    return rename


def override_quant_method(module: Any, **methods: Callable[..., Any]) -> None:
    """Give `module` its own quant method whose `methods` are replaced.

    Each replacement is called as `method(original, layer, *args)`. The new class derives from
    the old one, so isinstance checks in vLLM still pass.
    """
    method = copy.copy(module.quant_method)
    base = type(method)
    overrides = {
        name: _forward_to(getattr(base, name), replacement) for name, replacement in methods.items()
    }
    method.__class__ = type(f"TaskVector{base.__name__}", (base,), overrides)
    module.quant_method = method


def _forward_to(original: Callable[..., Any], replacement: Callable[..., Any]) -> Any:
    def method(self: Any, layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return replacement(functools.partial(original, self), layer, *args, **kwargs)

    return method


def override_norm(module: Any, replacement: Callable[..., Any]) -> None:
    """Replace the forward of a norm; called as `replacement(original, x, residual)`."""
    original = module._forward_method

    def forward(x: Tensor, residual: Tensor | None = None) -> Any:
        return replacement(original, x, residual)

    module._forward_method = forward


def input_width(module: Any) -> int:
    """Columns of the weight of a linear layer, embedding or head."""
    width = getattr(module, "input_size", None) or getattr(module, "embedding_dim", None)
    assert isinstance(width, int)
    return width


def is_plain_weight(module: Any) -> bool:
    """Whether the weight is not quantised."""
    kinds = type(getattr(module, "quant_method", None)).__mro__
    return any(kind.__name__.startswith("Unquantized") for kind in kinds)


def unpacked_weight(module: Any) -> Tensor:
    """[out, in]: the weight that a CPU layer has packed and dropped, by its product with 1.

    Exact up to the sign of zeros. Raises UnsupportedEngine for a weight that is not finite, whose
    row no product gives back.
    """
    dtype, width = module.weight.dtype, input_width(module)
    unit = torch.zeros(READ_ROWS, width, dtype=dtype)
    columns = []
    for start in range(0, width, READ_ROWS):
        count = min(READ_ROWS, width - start)
        unit.zero_()[range(count), range(start, start + count)] = 1
        columns.append(module.cpu_linear(unit, module.weight, None)[:count].T)
    weight = torch.cat(columns, dim=1).contiguous()
    if not bool(torch.isfinite(weight).all()):
        raise UnsupportedEngine("the base has weights that are not finite: it cannot be promoted")
    return weight


def repack_weight(module: Any, weight: Tensor) -> None:
    """Let a CPU layer that has packed its weight do so again; others use `weight` as it is."""
    if not hasattr(module, "cpu_linear"):
        return
    if not module.weight.numel():
        module.weight = nn.Parameter(weight, requires_grad=False)
    module.quant_method.process_weights_after_loading(module)


def available_memory() -> int:
    """Bytes of host memory that can be had."""
    import psutil  # type: ignore[import-untyped]  # vLLM's own requirement

    return int(psutil.virtual_memory().available)


def release_free_memory() -> None:
    """Let the C library give the system back what it keeps of freed memory, where it can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextlib.asynccontextmanager
async def paused(engine: Any, timeout_s: float) -> AsyncIterator[None]:
    """While open no request runs: those that did have finished, others wait, caches are empty.

    Raises TimeoutError when running requests take longer than `timeout_s`.
    """
    if not hasattr(engine, "pause_generation"):
        raise UnsupportedEngine("this vLLM cannot be paused, so nothing can be promoted")
    try:
        async with asyncio.timeout(timeout_s):
            await engine.pause_generation(mode="wait", clear_cache=True)
        yield
    finally:
        await engine.resume_generation()


def lora_request(name: str, loadout_id: int, canonical: str) -> Any:
    """vLLM's request for a loadout. Prefix-cache blocks are keyed by name and path."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(lora_name=name, lora_int_id=loadout_id, lora_path=canonical)


def _add_worker_methods() -> None:
    from vllm.v1.worker.worker_base import WorkerBase

    def apply(self: Any, evict: list[str], load: dict[str, tuple[int, int]]) -> None:
        self.model_runner.lora_manager.apply(evict, load)

    def status(self: Any) -> dict[str, str]:
        states: dict[str, str] = self.model_runner.lora_manager.status()
        return states

    def prefetch(self: Any, digests: list[str]) -> None:
        self.model_runner.lora_manager.prefetch(digests)

    def prefetched(self: Any, digests: list[str]) -> dict[str, str]:
        states: dict[str, str] = self.model_runner.lora_manager.prefetched(digests)
        return states

    def stats(self: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.model_runner.lora_manager.stats()
        return found

    def promote(self: Any, asked: str, served: str) -> dict[str, Any]:
        outcome: dict[str, Any] = self.model_runner.lora_manager.promote(asked, served)
        return outcome

    def demote(self: Any) -> dict[str, Any]:
        outcome: dict[str, Any] = self.model_runner.lora_manager.demote()
        return outcome

    def promotion(self: Any, checksum: bool) -> dict[str, Any]:
        outcome: dict[str, Any] = self.model_runner.lora_manager.promotion(checksum)
        return outcome

    setattr(WorkerBase, WORKER_APPLY, apply)
    setattr(WorkerBase, WORKER_STATUS, status)
    setattr(WorkerBase, WORKER_PREFETCH, prefetch)
    setattr(WorkerBase, WORKER_PREFETCHED, prefetched)
    setattr(WorkerBase, WORKER_STATS, stats)
    setattr(WorkerBase, WORKER_PROMOTE, promote)
    setattr(WorkerBase, WORKER_DEMOTE, demote)
    setattr(WorkerBase, WORKER_PROMOTION, promotion)


def _add_prompt_logprobs_hook() -> None:
    """Tell the manager when the head is applied to prompt positions instead of sampled rows."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    stock = GPUModelRunner._get_prompt_logprobs_dict

    @functools.wraps(stock)
    def prompt_logprobs(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        manager = getattr(self, "lora_manager", None)
        if manager is None:
            return stock(self, hidden_states, *args, **kwargs)
        with manager.prompt_positions(hidden_states):
            return stock(self, hidden_states, *args, **kwargs)

    GPUModelRunner._get_prompt_logprobs_dict = prompt_logprobs


def _bound_metric_labels() -> None:
    """Keep loadout names out of `vllm:lora_requests_info`.

    vLLM makes a permanent series of every distinct set of names that ever ran together.
    """
    from vllm.v1.metrics.stats import LoRARequestStates

    def count_nothing(*_args: Any, **_kwargs: Any) -> None:
        return None

    for name in ("request_waiting", "request_running", "request_finished"):
        if hasattr(LoRARequestStates, name):
            setattr(LoRARequestStates, name, count_nothing)
