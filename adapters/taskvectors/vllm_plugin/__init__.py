"""The vLLM plugin: a resident base serves a different mix of task vectors for every request.

Loaded by vLLM through its entry points. `vllm.general_plugins` calls `register` in every
process; `vllm.endpoint_plugins` loads `endpoint.LoadoutEndpoint` in the API server.
"""


def register() -> None:
    """Put task vectors where vLLM's LoRA manager stands. Idempotent."""
    from taskvectors.vllm_plugin import compat, compilation, manager

    compat.install(manager.create)
    compilation.allow(manager.asks_to_compile)
