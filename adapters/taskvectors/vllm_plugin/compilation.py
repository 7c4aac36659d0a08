"""Compiled engines on a CPU: what depends on how vLLM compiles a model there.

vLLM traces a model once and drops the guards, so a trace holds what it saw for ever. Each compiled
module gets two: one without task vectors, which costs what plain vLLM costs, and a twin that calls
the operator of `trace_ops` after every hooked layer. Which of them a step needs is decided outside.
"""

import copy
import functools
import os
from collections.abc import Callable
from typing import Any

from torch import nn

from taskvectors.vllm_plugin.layers import StepState

_MARK = "_taskvectors_compiles"
_PAIR = "_taskvectors_twin"


def allow(asks: Callable[[Any], bool]) -> None:
    """Let vLLM compile a model with LoRA on a CPU where `asks(vllm_config)`; it turns that off.

    Its ahead-of-time form is off then: it keeps one trace for each model. Idempotent.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.platforms.cpu import CpuPlatform

    if _MARK in CpuPlatform.__dict__:
        return
    stock = CpuPlatform.check_and_update_config.__func__

    def check(cls: Any, vllm_config: Any) -> None:
        if not asks(vllm_config):
            stock(cls, vllm_config)
            return
        os.environ["VLLM_USE_AOT_COMPILE"] = "0"
        lora, vllm_config.lora_config = vllm_config.lora_config, None
        try:
            stock(cls, vllm_config)
        finally:
            vllm_config.lora_config = lora

    CpuPlatform.check_and_update_config = classmethod(check)
    setattr(CpuPlatform, _MARK, True)
    _warm_up_both()


def add_twins(model: nn.Module, state: StepState) -> int:
    """Give each compiled module in `model` its second trace; how many there are."""
    from vllm.compilation.wrapper import TorchCompileWithNoGuardsWrapper as Wrapper

    compiled = [
        module
        for module in model.modules()
        if isinstance(module, Wrapper) and not getattr(module, "do_not_compile", True)
    ]
    for module in compiled:
        object.__setattr__(module, _PAIR, (state, _twin(module, Wrapper)))  # not a submodule
        _dispatch(type(module))
    return len(compiled)


def _twin(module: Any, wrapper: Any) -> Any:
    """The same weights and layers behind a trace of its own."""
    from vllm.config import set_current_vllm_config

    twin = copy.copy(module)
    told = {"compile_prefix": "_compile_prefix", "is_encoder": "_is_encoder"}
    options = {
        name: getattr(module, field) for name, field in told.items() if hasattr(module, field)
    }
    with set_current_vllm_config(module.vllm_config):
        wrapper.__init__(twin, **options)
    twin.compiled = False
    return twin


def _dispatch(compiled: Any) -> None:
    """Let calls of the class go to the twin while a step mixes."""
    if _PAIR in compiled.__dict__:
        return
    original = compiled.__call__

    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        state, twin = getattr(self, _PAIR) or (None, None)
        is_mixed = state is not None and state.is_mixed
        return original(twin if is_mixed else self, *args, **kwargs)

    compiled.__call__ = call
    setattr(compiled, _PAIR, None)


def _warm_up_both() -> None:
    """vLLM traces the model before it serves; let it do so once more for the twins."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    stock = CPUModelRunner.warming_up_model

    @functools.wraps(stock)
    def warm_up(self: Any) -> None:
        stock(self)
        manager: Any = getattr(self, "lora_manager", None)
        if hasattr(manager, "rehearsal"):
            with manager.rehearsal():
                stock(self)

    CPUModelRunner.warming_up_model = warm_up
