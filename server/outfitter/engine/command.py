"""How the engine is started: its command line and its environment. Pure."""

import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from outfitter.config import ADMISSION_TIMEOUT_S, GatewayConfig
from outfitter.engine.relay import ENGINE_KEEP_ALIVE_S
from taskvectors.store.settings import ORIGIN_VARIABLE, REDIS_VARIABLE, TierSettings

_SETTINGS = {
    "VLLM_PLUGINS": "taskvectors",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(ENGINE_KEEP_ALIVE_S),
    "HF_HUB_OFFLINE": "1",
}
_DEFAULTS = {"VLLM_CPU_KVCACHE_SPACE": "1"}
# Runtime LoRA endpoints take any path; an API key would lock the gateway itself out; stored
# responses are never dropped; request ids of clients may be the same, and must not be the engine's.
_REMOVED = (
    *("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_API_KEY"),
    *("VLLM_ENABLE_RESPONSES_API_STORE", "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION"),
    *("OUTFITTER_DATABASE_URL", "OUTFITTER_REDIS_URL", "OUTFITTER_ORIGIN_URL"),
)


def engine_command(config: GatewayConfig, socket: Path, fingerprint: str) -> list[str]:
    """The command line of the vLLM child."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(config.model), "--served-model-name", config.name]
    command += ["--uds", str(socket), "--dtype", config.dtype, "--disable-uvicorn-access-log"]
    command += ["--enable-lora", "--max-loras", str(config.slots), "--max-lora-rank", "1"]
    command += ["--enable-prompt-tokens-details", *([] if config.compiles else ["--enforce-eager"])]
    if not _has_endpoint_plugins():
        command += ["--middleware", "taskvectors.vllm_plugin.endpoint.LoadoutMiddleware"]
    command += ["--additional-config", json.dumps(_additional_config(config, fingerprint))]
    if config.max_model_len is not None:
        command += ["--max-model-len", str(config.max_model_len)]
    return [*command, *config.engine_args]


def engine_environment(environment: Mapping[str, str], tiers: TierSettings) -> dict[str, str]:
    """The environment of the vLLM child, from that of the gateway, with the URLs of `tiers`."""
    urls = {REDIS_VARIABLE: tiers.redis_url, ORIGIN_VARIABLE: tiers.origin_url}
    kept = {key: value for key, value in environment.items() if key not in {*_REMOVED, *urls}}
    given = {key: url for key, url in urls.items() if url is not None}
    return {**_DEFAULTS, **kept, **_SETTINGS, **given}


def _has_endpoint_plugins() -> bool:
    """Whether the installed vLLM, which is not imported, loads endpoint plugins itself."""
    vllm = importlib.util.find_spec("vllm")
    folders = list(vllm.submodule_search_locations or ()) if vllm is not None else []
    return not folders or any(Path(f, "plugins", "endpoint_plugins").is_dir() for f in folders)


def _additional_config(config: GatewayConfig, fingerprint: str) -> dict[str, object]:
    settings = {
        "store": str(config.store.resolve()),
        "pool_bytes": config.pool_bytes,
        "composed_bytes": config.composed_bytes,
        "compose_memory_bytes": config.compose_memory_bytes,
        "placement": config.placement,
        "compiled": config.compiles,
        "base_fingerprint": fingerprint,
        "max_vectors": config.max_vectors,
        "admission_timeout_s": ADMISSION_TIMEOUT_S,
        "tiers": config.tiers.public(),
    }
    return {"task_vectors": settings}
