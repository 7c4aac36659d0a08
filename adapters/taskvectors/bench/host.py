"""One engine's process: `python -m taskvectors.bench.host FD`; FD is its end of a pipe.

Takes an EngineSpec, then (method, arguments) until the pipe is closed.
"""

import functools
import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from taskvectors.bench.engines import Adapter, EngineSpec
from taskvectors.spec import Loadout
from taskvectors.store import DirectoryStore

READY_TIMEOUT_S = 120.0
WARMUP_STEPS = 2
IDLE_STEPS = 2
"""Steps in which no request has its first token: the rest waits for room."""


class Host:
    """The engine, and the requests that run in it."""

    def __init__(self, spec: EngineSpec) -> None:
        self._llm: Any = LLM(**spec.arguments())
        self._engine: Any = self._llm.llm_engine
        self._longest: int = self._engine.vllm_config.model_config.max_model_len
        self._vocabulary: int = self._engine.vllm_config.model_config.get_vocab_size()
        self._store = spec.store
        self._names = itertools.count(1)
        self._requests: dict[str, LoRARequest] = {}
        self._columns: dict[str, int] = {}
        self._running: set[str] = set()

    def device(self) -> str:
        """What the engine runs on."""
        kind: str = self._engine.vllm_config.device_config.device_type
        return str(torch.cuda.get_device_name()) if kind == "cuda" else kind

    def start(self, adapters: list[Adapter], prompt: int) -> int:
        """See Engine.start."""
        waiting = {self._add(adapter, prompt, self._longest - prompt) for adapter in adapters}
        idle = 0
        while waiting and idle < IDLE_STEPS:
            begun = {output.request_id for output in self._engine.step()} & waiting
            idle = 0 if begun else idle + 1
            waiting -= begun
            self._running |= begun
        if waiting:
            self._engine.abort_request(sorted(waiting))
        for _ in range(WARMUP_STEPS):
            self.step()
        return len(self._running)

    def step(self) -> float:
        """See Engine.step."""
        begin = time.perf_counter()
        outputs = self._engine.step()
        seconds = time.perf_counter() - begin
        if len(outputs) != len(self._running):
            raise RuntimeError(
                f"{len(outputs)} of {len(self._running)} requests got a token; give the engine"
                " more memory (VLLM_CPU_KVCACHE_SPACE, --memory) or use a smaller batch"
            )
        return seconds

    def drain(self) -> None:
        """See Engine.drain."""
        self._engine.abort_request(sorted(self._running))
        self._running.clear()
        while self._engine.has_unfinished_requests():
            self._engine.step()

    def first_token(self, adapter: Adapter, prompt: int) -> float:
        """See Engine.first_token."""
        begin = time.perf_counter()
        self._add(adapter, prompt, 1)
        while self._engine.has_unfinished_requests():
            self._engine.step()
        return time.perf_counter() - begin

    def activate(self, adapter: Adapter) -> float:
        """See Engine.activate. The plugin's own gets its slot and coefficients with the first step
        that uses it, which is called here, too; mapping a step's tokens is left out of both."""
        request = self._request(adapter, is_new=True)
        assert request is not None
        begin = time.perf_counter()
        self._engine.add_lora(request)
        if isinstance(adapter, Loadout):
            self._manager.set_active_adapters({request}, None)
        return time.perf_counter() - begin

    def complete(
        self, requests: list[tuple[list[int], Adapter]], tokens: int
    ) -> list[tuple[list[int], list[float]]]:
        """See Engine.complete."""
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0, logprobs=0)
        outputs = self._llm.generate(
            [{"prompt_token_ids": ids} for ids, _ in requests],
            params,
            lora_request=[self._request(adapter) for _, adapter in requests],
            use_tqdm=False,
        )
        answers = []
        for output in outputs:
            ids = list(output.outputs[0].token_ids)
            rows = output.outputs[0].logprobs
            answers.append((ids, [row[i].logprob for i, row in zip(ids, rows, strict=True)]))
        return answers

    def load(self, digests: list[str]) -> dict[str, tuple[int, int]]:
        """See Engine.load. Vectors become resident as the API server's ledger would have it."""
        return {digest: self._load(digest) for digest in digests}

    def _load(self, digest: str) -> tuple[int, int]:
        assert self._store is not None
        pool = self._manager._pool
        counted = pool._stager.nbytes(DirectoryStore(self._store).header(digest))
        before = _held_bytes(pool)
        self._columns[digest] = len(self._columns)
        self._manager.apply([], {digest: (self._columns[digest], counted)})
        deadline = time.monotonic() + READY_TIMEOUT_S
        while (status := self._manager.status()[digest]) == "loading":
            if time.monotonic() > deadline:
                raise TimeoutError(f"a vector was not ready after {READY_TIMEOUT_S:g} s")
            time.sleep(0.01)
        if status != "ready":
            raise RuntimeError(status)
        return _held_bytes(pool) - before, counted

    @functools.cached_property
    def _manager(self) -> Any:
        """The worker's, which lives in this process."""
        [manager] = self._llm.collective_rpc(lambda worker: worker.model_runner.lora_manager)
        return manager

    def _add(self, adapter: Adapter, prompt: int, tokens: int) -> str:
        name = f"r{next(self._names)}"
        seed = next(self._names)
        ids = [(7 * seed + 3 * j) % (self._vocabulary - 10) + 10 for j in range(prompt)]
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0)
        request = self._request(adapter)
        self._engine.add_request(name, {"prompt_token_ids": ids}, params, lora_request=request)
        return name

    def _request(self, adapter: Adapter, *, is_new: bool = False) -> LoRARequest | None:
        """The LoRARequest of an adapter, or another one for it."""
        if adapter is None:
            return None
        if isinstance(adapter, Loadout):
            if missing := sorted(adapter.digests - self._columns.keys()):
                self.load(missing)
            name, path = adapter.engine_name, adapter.canonical
        else:
            name = path = str(adapter)
        if is_new:
            name = f"{name}-{next(self._names)}"
        if name not in self._requests:
            self._requests[name] = LoRARequest(name, len(self._requests) + 1, path)
        return self._requests[name]


def _held_bytes(pool: Any) -> int:
    """Bytes of all memory that arrays of resident vectors keep, each counted once."""
    deltas = [site.deltas for site in pool._stager._index.sites]
    return sum(dict(_memory(deltas, set())).values())


def _memory(objects: Iterable[Any], seen: set[int]) -> Iterator[tuple[int, int]]:
    """(address, bytes) of the memory behind all arrays that can be reached."""
    for value in objects:
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            yield storage.data_ptr(), storage.nbytes()
        elif isinstance(value, np.ndarray):
            yield from _of_array(value)
        elif isinstance(value, tuple | list | set | frozenset):
            yield from _memory(value, seen)
        elif hasattr(value, "values") and hasattr(value, "keys"):
            yield from _memory(value.values(), seen)
        elif type(value).__module__.startswith("taskvectors.") and hasattr(value, "__dict__"):
            yield from _memory(vars(value).values(), seen)


def _of_array(array: Any) -> Iterator[tuple[int, int]]:
    """What keeps a view alive is counted whole."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    if isinstance(array.base, torch.Tensor):
        yield from _memory([array.base], set())
    else:
        nbytes = memoryview(array.base).nbytes if array.base is not None else array.nbytes
        yield id(array.base) if array.base is not None else array.ctypes.data, nbytes


def main() -> None:
    """Serve one pipe until it is closed."""
    pipe = Connection(int(sys.argv[1]))
    host: Host | None = None
    spec = pipe.recv()
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        try:
            host = host or Host(spec)
            pipe.send(("value", getattr(host, method)(*arguments)))
        except Exception as error:  # noqa: BLE001 (told to the parent, whatever it was)
            pipe.send(("error", f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    main()
