"""Offline vLLM engines in processes of their own, so that several can be stepped in turn.

The kinds: `plain` has no LoRA, `plugin` has task vectors, `stock` has vLLM's own LoRA.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from taskvectors.errors import TaskVectorError
from taskvectors.spec import Loadout, LoadoutItem

Kind = Literal["plain", "plugin", "stock"]
Adapter = Loadout | Path | None
"""What a request is served with: a loadout (plugin), a PEFT folder (stock), or nothing."""

DEFAULTS = {"VLLM_CPU_KVCACHE_SPACE": "1"}
LAST_LINES = 12
STOP_TIMEOUT_S = 60


class EngineFailed(TaskVectorError):
    """An engine did not start, ended, or could not do what it was told."""


@dataclass(frozen=True)
class EngineSpec:
    """How to start one engine.

    store: of the task vectors, for the plugin. slots: distinct loadouts or adapters in one batch.
    threads: of the processor. extra: more keyword arguments of vllm.LLM.
    """

    kind: Kind
    model: Path
    dtype: str
    store: Path | None = None
    slots: int = 16
    max_lora_rank: int = 8
    pool_bytes: int = 8 << 30
    threads: int = 1
    eager: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for vllm.LLM. A step ends with its tokens, so that it can be timed."""
        arguments: dict[str, Any] = {
            "model": str(self.model),
            "dtype": self.dtype,
            "max_model_len": 2048,
            "enable_prefix_caching": False,
            "enforce_eager": self.eager,
            "async_scheduling": False,
            "disable_log_stats": True,
            **self.extra,
        }
        if self.kind != "plain":
            arguments |= {"enable_lora": True, "max_loras": self.slots}
            arguments["max_lora_rank"] = self.max_lora_rank if self.kind == "stock" else 1
        if self.kind == "plugin":
            settings: dict[str, Any] = {"store": str(self.store), "pool_bytes": self.pool_bytes}
            settings["compiled"] = not self.eager
            arguments["additional_config"] = {"task_vectors": settings}
        return arguments

    def environment(self) -> dict[str, str]:
        """Variables of the child, beside those of this process."""
        return {
            "OMP_NUM_THREADS": str(self.threads),
            "VLLM_PLUGINS": "taskvectors" if self.kind == "plugin" else "none",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_USE_V2_MODEL_RUNNER": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "HF_HUB_OFFLINE": "1",
        }


class Engine:
    """A vLLM engine in a child process; use as a context manager.

    Every method raises EngineFailed with what the child said. `device` names what it runs on.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._log: IO[bytes]
        self.device = ""

    def __enter__(self) -> "Engine":
        self._pipe, theirs = multiprocessing.Pipe()
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(  # noqa: S603 (this interpreter, and a number)
            [sys.executable, "-m", "taskvectors.bench.host", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**DEFAULTS, **os.environ, **self._spec.environment()},
        )
        theirs.close()
        try:
            self._send(self._spec)
            self.device = self._call("device")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()  # the child ends with it
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def load(self, digests: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Make vectors resident, one by one.

        Bytes of each: of the arrays that came to hold it, 0 where it went into preallocated ones;
        and as the pool counts it.
        """
        found: dict[str, tuple[int, int]] = self._call("load", list(digests))
        return found

    def start(self, adapters: Sequence[Adapter], prompt: int) -> int:
        """Run one request with a prompt of `prompt` tokens for each of `adapters`, without end.

        Returns how many run side by side; those that do not fit are dropped.
        """
        running: int = self._call("start", list(adapters), prompt)
        return running

    def step(self) -> float:
        """Seconds of one step, in which every running request gets one token."""
        seconds: float = self._call("step")
        return seconds

    def drain(self) -> None:
        """End all running requests."""
        self._call("drain")

    def first_token(self, adapter: Adapter, prompt: int) -> float:
        """Seconds from a request with a prompt of `prompt` tokens to its first token, alone."""
        seconds: float = self._call("first_token", adapter, prompt)
        return seconds

    def activate(self, adapter: Adapter) -> float:
        """Seconds to make a loadout or adapter ready under a name that was never seen before."""
        seconds: float = self._call("activate", adapter)
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
        self._send((method, args))
        try:
            outcome, value = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise EngineFailed(f"the {self._spec.kind} engine ended\n{self._said()}") from None
        if outcome == "error":
            said = f"\n{self._said()}" if method == "device" else ""
            raise EngineFailed(f"the {self._spec.kind} engine: {value}{said}")
        return value

    def _send(self, message: object) -> None:
        try:
            self._pipe.send(message)
        except ConnectionError:
            raise EngineFailed(f"the {self._spec.kind} engine ended\n{self._said()}") from None

    def _said(self) -> str:
        return last_lines(self._log)


def last_lines(log: IO[bytes]) -> str:
    """What a child printed last."""
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-LAST_LINES:])


def loadout(weights: Mapping[str, float]) -> Loadout:
    """A loadout of digests and weights."""
    return Loadout.build([LoadoutItem(digest, weight) for digest, weight in weights.items()])
