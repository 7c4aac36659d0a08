"""Loadouts are composed once, apart from everything else, and what goes wrong stays there."""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from taskvectors.errors import (
    EngineUnavailable,
    InvalidLoadout,
    PoolBusy,
    PoolTooSmall,
    TaskVectorError,
    UnsupportedEngine,
    VectorLoadFailed,
    VectorNotFound,
)
from taskvectors.format import read_vector
from taskvectors.merge.compose import Composed, compose
from taskvectors.spec import Loadout, LoadoutItem
from taskvectors.store import DirectoryStore
from taskvectors.store.composed import ComposedStore, composed_key
from taskvectors.store.settings import TierSettings
from taskvectors.store.tiered import TieredFiles
from taskvectors.vllm_plugin import compat, composer
from taskvectors.vllm_plugin.admission import Admission
from taskvectors.vllm_plugin.composer import MAX_RUNNING, ChildProcess, Composer
from taskvectors.vllm_plugin.config import PluginConfig
from taskvectors.vllm_plugin.endpoint import LoadoutMiddleware
from taskvectors.vllm_plugin.pool import failure
from taskvectors.vllm_plugin.service import Registry, admitted
from tests.taskvectors.merge.test_compose import FINGERPRINT, draw, job, stored, ties

A, B = "a" * 64, "b" * 64


class FakeRun:
    """Stands in for the child process: writes a real file when `gate` is open."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: TaskVectorError | None = None
        self.begun: list[Loadout] = []
        self.running = self.most_running = 0

    async def __call__(self, loadout: Loadout) -> Composed:
        self.begun.append(loadout)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.gate.wait()
            await asyncio.sleep(0.001)
            if self.error is not None:
                raise self.error
            return self._write(loadout)
        finally:
            self.running -= 1

    def _write(self, loadout: Loadout) -> Composed:
        return compose(job(self.root, loadout))


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(bounded())


@pytest.fixture
def digests(tmp_path: Path) -> list[str]:
    """Two vectors in a store."""
    return stored(tmp_path, draw(1), draw(2))


def config(root: Path, **settings: object) -> PluginConfig:
    values = {"base_fingerprint": FINGERPRINT, "pool_bytes": 1 << 20, **settings}
    return PluginConfig(store=root, **values)  # type: ignore[arg-type]


def child(root: Path, command: tuple[str, ...] = composer.COMMAND, **settings: object) -> Any:
    made = config(root, **settings)
    return ChildProcess(made, value_bytes=4, sparse_value_bytes=4, base_dir=None, command=command)


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def outcome(pending: Awaitable[object]) -> object:
    [found] = await asyncio.gather(pending, return_exceptions=True)
    return found


def test_a_linear_loadout_passes_untouched(tmp_path: Path) -> None:
    """The very object, with nothing run and nothing remembered."""

    async def test() -> None:
        run = FakeRun(tmp_path)
        linear = Loadout.build([LoadoutItem(A, 0.5)])
        assert await Composer(config(tmp_path), run).compose(linear) is linear
        assert run.begun == []

    run(test)


def test_twenty_requests_at_once_compose_once(tmp_path: Path, digests: list[str]) -> None:
    """All get the same vector with weight 1, and so does whoever comes later."""

    async def test() -> None:
        run = FakeRun(tmp_path)
        composing = Composer(config(tmp_path), run)
        found = await asyncio.gather(*(composing.compose(ties(digests)) for _ in range(20)))
        found.append(await composing.compose(ties(digests)))
        assert len(run.begun) == 1
        assert len(set(found)) == 1
        [item] = found[0].items
        assert found[0].is_linear
        assert (item.weight, ComposedStore(tmp_path).check(item.digest)) == (1.0, True)

    run(test)


def test_another_composer_finds_it_in_the_store(tmp_path: Path, digests: list[str]) -> None:
    """After a restart, or in another gateway; not where another base is served."""

    async def test() -> None:
        first = await Composer(config(tmp_path), FakeRun(tmp_path)).compose(ties(digests))
        again, other = FakeRun(tmp_path), FakeRun(tmp_path)
        assert await Composer(config(tmp_path), again).compose(ties(digests)) == first
        assert again.begun == []
        await Composer(config(tmp_path, base_fingerprint=None), other).compose(ties(digests))
        assert len(other.begun) == 1

    run(test)


def test_a_failure_reaches_all_and_is_not_remembered(tmp_path: Path, digests: list[str]) -> None:
    """The next request tries again."""

    async def test() -> None:
        run = FakeRun(tmp_path)
        run.error = EngineUnavailable("boom")
        composing = Composer(config(tmp_path), run)
        jobs = [composing.compose(ties(digests)) for _ in range(3)]
        found = await asyncio.gather(*jobs, return_exceptions=True)
        assert [str(error) for error in found] == ["boom"] * 3
        run.error = None
        await composing.compose(ties(digests))
        assert len(run.begun) == 2

    run(test)


def test_few_compositions_run_at_once(tmp_path: Path, digests: list[str]) -> None:
    """The others wait for their turn, and are all composed."""

    async def test() -> None:
        run = FakeRun(tmp_path)
        composing = Composer(config(tmp_path), run)
        loadouts = [ties(digests, density=n / 100) for n in range(10, 20)]
        await asyncio.gather(*(composing.compose(loadout) for loadout in loadouts))
        assert run.most_running == MAX_RUNNING
        assert len(run.begun) == 10

    run(test)


def test_what_waits_too_long_for_its_turn_is_told(tmp_path: Path, digests: list[str]) -> None:
    """The compositions that run go on."""

    async def test() -> None:
        run = FakeRun(tmp_path)
        run.gate.clear()
        composing = Composer(config(tmp_path, compose_timeout_s=0.05), run)
        loadouts = [ties(digests, density=n / 100) for n in range(10, 10 + MAX_RUNNING)]
        running = [asyncio.create_task(composing.compose(loadout)) for loadout in loadouts]
        await until(lambda: len(run.begun) == MAX_RUNNING)
        with pytest.raises(PoolBusy, match=r"0\.05 s"):
            await composing.compose(ties(digests))
        run.gate.set()
        await asyncio.gather(*running)

    run(test)


def test_the_number_of_those_who_wait_is_bounded(tmp_path: Path, digests: list[str]) -> None:
    """One more is told to come back."""

    async def test() -> None:
        run = FakeRun(tmp_path)
        run.gate.clear()
        composing = Composer(config(tmp_path, max_waiting=2), run)
        waiting = [asyncio.create_task(composing.compose(ties(digests))) for _ in range(2)]
        await until(lambda: run.running == 1)
        with pytest.raises(PoolBusy, match="2 requests wait"):
            await composing.compose(ties(digests))
        run.gate.set()
        await asyncio.gather(*waiting)

    run(test)


@pytest.mark.parametrize("leaving", [1, 2])
def test_a_composition_that_has_begun_goes_on_when_clients_leave(
    tmp_path: Path, digests: list[str], leaving: int
) -> None:
    """Whoever stays gets it; if nobody does, whoever comes back."""

    async def test() -> None:
        run = FakeRun(tmp_path)
        run.gate.clear()
        composing = Composer(config(tmp_path), run)
        jobs = [asyncio.create_task(composing.compose(ties(digests))) for _ in range(2)]
        await until(lambda: run.running == 1)
        for leaver in jobs[:leaving]:
            leaver.cancel()
            assert isinstance(await outcome(leaver), asyncio.CancelledError)
        run.gate.set()
        served = await composing.compose(ties(digests))
        assert [await stayer for stayer in jobs[leaving:]] == [served] * (2 - leaving)
        assert len(run.begun) == 1

    run(test)


def test_a_composition_that_nobody_waits_for_is_not_begun(
    tmp_path: Path, digests: list[str]
) -> None:
    """A client that leaves takes its place in the line along, and can come back."""

    async def test() -> None:
        run = FakeRun(tmp_path)
        run.gate.clear()
        composing = Composer(config(tmp_path), run)
        loadouts = [ties(digests, density=n / 100) for n in range(10, 11 + MAX_RUNNING)]
        jobs = [asyncio.create_task(composing.compose(loadout)) for loadout in loadouts[:-1]]
        await until(lambda: len(run.begun) == MAX_RUNNING)
        for seconds in (0.0, 0.05):  # before it is in line, and in it
            gone = asyncio.create_task(composing.compose(loadouts[-1]))
            await asyncio.sleep(seconds)
            gone.cancel()
            assert isinstance(await outcome(gone), asyncio.CancelledError)
        run.gate.set()
        await asyncio.gather(*jobs)
        assert loadouts[-1] not in run.begun
        await composing.compose(loadouts[-1])
        assert loadouts[-1] in run.begun

    run(test)


def test_a_file_that_is_gone_is_composed_again(
    tmp_path: Path, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evicted by another gateway, or removed by a person."""
    monkeypatch.setattr(composer, "TOUCH_S", -1.0)

    async def test() -> None:
        run = FakeRun(tmp_path)
        composing = Composer(config(tmp_path), run)
        served = await composing.compose(ties(digests))
        ComposedStore(tmp_path).path(served.items[0].digest).unlink()
        assert await composing.compose(ties(digests)) == served
        assert len(run.begun) == 2

    run(test)


def test_a_publish_time_method_is_refused_before_anything(
    tmp_path: Path, digests: list[str]
) -> None:
    async def test() -> None:
        run = FakeRun(tmp_path)
        items = [LoadoutItem(digest, 1.0) for digest in digests]
        with pytest.raises(InvalidLoadout, match="outfitter merge"):
            await Composer(config(tmp_path), run).compose(Loadout.build(items, "slerp"))
        assert run.begun == []

    run(test)


def test_the_child_process_composes(tmp_path: Path, digests: list[str]) -> None:
    """The real one, with what it was told."""

    async def test() -> None:
        composed = await child(tmp_path)(ties(digests))
        key = composed_key(ties(digests), FINGERPRINT)
        assert ComposedStore(tmp_path).find(key) == composed.digest
        with pytest.raises(PoolTooSmall, match="the pool has 1000"):
            await child(tmp_path, pool_bytes=1000)(ties(digests, density=0.9))

    run(test)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL, perhaps for want of"),
        ("import sys; sys.exit(3)", "without an answer .exit status 3"),
        ("print('nonsense')", "without an answer"),
        ('print(\'{"error": "SystemExit", "message": "x"}\')', "without an answer"),
        ("import time; time.sleep(600)", "not composed within 0.5 s"),
        (None, "no process can be started"),
    ],
)
def test_a_child_process_that_fails_is_an_error_and_no_more(
    tmp_path: Path, digests: list[str], code: str | None, message: str
) -> None:
    """Killed, broken or slow: the client is told, and no process stays behind."""

    async def test() -> None:
        command = (sys.executable, "-S", "-c", code) if code else ("/nowhere",)
        settings = {"compose_timeout_s": 0.5} if "sleep" in str(code) else {}
        with pytest.raises(EngineUnavailable, match=message):
            await child(tmp_path, command, **settings)(ties(digests))

    run(test)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_child_process_that_is_gone_before_it_was_told_is_an_error_and_no_more(
    tmp_path: Path,
    digests: list[str],
    loop: Callable[[], asyncio.AbstractEventLoop],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vLLM's loop, uvloop, has an error of its own for that."""
    start = asyncio.create_subprocess_exec

    async def start_and_lose(*args: Any, **options: Any) -> asyncio.subprocess.Process:
        process = await start(*args, **options)
        await process.wait()
        return process

    async def test() -> None:
        with pytest.raises(EngineUnavailable, match="SIGKILL"):
            await child(tmp_path, command)(ties(digests))

    command = (sys.executable, "-S", "-c", "import os; os.kill(os.getpid(), 9)")
    monkeypatch.setattr(composer.asyncio, "create_subprocess_exec", start_and_lose)
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(test(), 60))


class LoadingWorker:
    """The worker's pool: reads files as the real one does, and stages nothing."""

    def __init__(self, root: Path) -> None:
        self._files = TieredFiles(root, TierSettings(), with_memory=True)
        self._status: dict[str, str] = {}
        self.loads: list[str] = []

    async def apply(self, evict: list[str], load: dict[str, int]) -> None:
        self._status = {d: s for d, s in self._status.items() if d not in evict}
        for digest in load:
            self.loads.append(digest)
            try:
                read_vector(self._files.load(digest))
                self._status[digest] = "ready"
            except TaskVectorError as error:
                self._status[digest] = failure(error)

    async def status(self) -> Mapping[str, str]:
        return dict(self._status)


def admission(root: Path, worker: Any) -> Admission:
    files = TieredFiles(root, TierSettings(), with_memory=False)
    return Admission(config(root), worker, files, value_bytes=4, sparse_value_bytes=4)


@pytest.mark.parametrize("where", [5, 200, -1])
@pytest.mark.parametrize("requests", [1, 5])
def test_a_damaged_file_is_composed_again_and_not_served(
    tmp_path: Path, digests: list[str], where: int, requests: int
) -> None:
    """In its header's length, its header or its values; found by whoever loads it."""

    async def test() -> None:
        run = FakeRun(tmp_path)
        served = await Composer(config(tmp_path), run).compose(ties(digests))
        path = ComposedStore(tmp_path).path(served.items[0].digest)
        content = bytearray(path.read_bytes())
        content[where] ^= 1
        path.chmod(0o644)
        path.write_bytes(content)
        composing, pool = Composer(config(tmp_path), run), admission(tmp_path, worker)

        async def use() -> Loadout:
            async with admitted(composing, pool, ties(digests)) as found:
                return found

        assert await asyncio.gather(*(use() for _ in range(requests))) == [served] * requests
        assert len(run.begun) == 2

    worker = LoadingWorker(tmp_path)
    run(test)
    assert set(worker.loads) <= {worker.loads[-1]}


def test_a_sound_file_that_cannot_be_staged_is_an_error(tmp_path: Path, digests: list[str]) -> None:
    """Composing it again would change nothing, so it is not."""

    class Refusing(LoadingWorker):
        async def status(self) -> Mapping[str, str]:
            return dict.fromkeys(self._status, "failed: no place in this engine")

    async def test() -> None:
        run = FakeRun(tmp_path)
        composing = Composer(config(tmp_path), run)
        with pytest.raises(VectorLoadFailed, match="no place"):
            async with admitted(composing, admission(tmp_path, Refusing(tmp_path)), ties(digests)):
                pass
        assert len(run.begun) == 1

    run(test)


def test_a_damaged_vector_of_a_linear_loadout_is_an_error(
    tmp_path: Path, digests: list[str]
) -> None:
    """Nobody can make it again."""
    path = DirectoryStore(tmp_path).path(digests[0])
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"!")

    async def test() -> None:
        linear = Loadout.build([LoadoutItem(digests[0], 1.0)])
        composing = Composer(config(tmp_path), FakeRun(tmp_path))
        with pytest.raises(VectorNotFound, match="no tier of the store has a sound"):
            async with admitted(composing, admission(tmp_path, LoadingWorker(tmp_path)), linear):
                pass

    run(test)


class Service:
    """LoadoutService without vLLM."""

    def __init__(self, root: Path, run: FakeRun) -> None:
        self.composer = Composer(config(root), run)
        self.admission = admission(root, LoadingWorker(root))
        self.served: dict[str, Any] = {}
        self.registry = Registry(self.served, keep=4)

    @contextlib.asynccontextmanager
    async def serve(self, loadout: Loadout) -> AsyncIterator[None]:
        async with admitted(self.composer, self.admission, loadout) as served:
            with self.registry.registered(loadout, served):
                yield


@pytest.fixture
def requests_of_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own class of requests, without importing it."""

    def request(name: str, loadout_id: int, path: str) -> SimpleNamespace:
        return SimpleNamespace(lora_name=name, lora_int_id=loadout_id, lora_path=path)

    monkeypatch.setattr(compat, "lora_request", request)


@pytest.mark.usefixtures("requests_of_vllm")
def test_the_engine_serves_the_derived_loadout_under_the_name_of_the_original(
    tmp_path: Path, digests: list[str]
) -> None:
    """The name, which keys the prefix cache, says the method; what is computed is linear."""

    async def test() -> None:
        service, loadout = Service(tmp_path, FakeRun(tmp_path)), ties(digests)
        async with service.serve(loadout):
            [(name, request)] = service.served.items()
            assert name == request.lora_name == loadout.engine_name
            computed = Loadout.from_canonical(request.lora_path)
            assert computed.is_linear
            assert [item.weight for item in computed.items] == [1.0]
            assert not computed.digests & set(digests)
        assert service.served == {}

    run(test)


@pytest.mark.usefixtures("requests_of_vllm")
def test_a_slow_composition_holds_nobody_else_up(tmp_path: Path, digests: list[str]) -> None:
    """Base and linear requests are answered while it runs; then its own is."""

    async def test() -> None:
        run = FakeRun(tmp_path)
        run.gate.clear()
        middleware = LoadoutMiddleware(_answer)
        middleware._service = Service(tmp_path, run)  # type: ignore[assignment]
        slow = asyncio.create_task(_ask(middleware, ties(digests)))
        await until(lambda: run.running == 1)
        linear = Loadout.build([LoadoutItem(digests[0], 0.5)])
        assert await _ask(middleware, None) == 200
        assert await _ask(middleware, linear) == 200
        assert not slow.done()
        run.gate.set()
        assert await slow == 200

    run(test)


def test_a_client_that_leaves_gives_up_its_place_in_line(
    tmp_path: Path, digests: list[str]
) -> None:
    """The composition that waits for its turn is dropped; those that run go on."""

    async def test() -> None:
        run, arriving = FakeRun(tmp_path), asyncio.Queue[Any]()
        run.gate.clear()
        middleware = LoadoutMiddleware(_answer)
        service = middleware._service = Service(tmp_path, run)  # type: ignore[assignment]
        busy, late = (ties(digests, density=d / 10) for d in (1, 3)), ties(digests)
        running = [asyncio.create_task(_ask(middleware, loadout)) for loadout in busy]
        await until(lambda: run.running == MAX_RUNNING)
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/completions",
            "headers": [(b"x-taskvectors-loadout", late.canonical.encode())],
        }
        leaving = asyncio.create_task(middleware(scope, arriving.get, None))  # type: ignore[arg-type]
        await until(lambda: late.digest in service.composer._flights)
        arriving.put_nowait({"type": "http.disconnect"})
        await leaving
        assert late.digest not in service.composer._flights
        for task in running:
            task.cancel()
        assert run.running == MAX_RUNNING == len(run.begun)

    run(test)


def test_what_cannot_be_composed_is_an_error_of_its_kind(
    tmp_path: Path, digests: list[str]
) -> None:
    """400 for what the client asked, 503 for what may go well the next time."""

    async def test() -> None:
        run = FakeRun(tmp_path)
        middleware = LoadoutMiddleware(_answer)
        middleware._service = Service(tmp_path, run)  # type: ignore[assignment]
        kinds = {PoolTooSmall: 400, InvalidLoadout: 400, EngineUnavailable: 503, PoolBusy: 503}
        for kind, status in kinds.items():
            run.error = kind("why")
            assert await _ask(middleware, ties(digests)) == status

    run(test)


async def _answer(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def _ask(middleware: LoadoutMiddleware, loadout: Loadout | None) -> int:
    """The status of the answer."""
    headers = [(b"x-taskvectors-loadout", loadout.canonical.encode())] if loadout else []
    statuses: list[int] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def receive() -> Any:
        await asyncio.Event().wait()

    await middleware(
        {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers},
        receive,
        send,
    )
    return statuses[0]


def test_a_hit_takes_no_look_at_the_store(
    tmp_path: Path, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not within the time for which a file is marked as used."""

    async def test() -> None:
        composing = Composer(config(tmp_path), FakeRun(tmp_path))
        served = await composing.compose(ties(digests))
        monkeypatch.setattr(ComposedStore, "touch", None)
        monkeypatch.setattr(ComposedStore, "find", None)
        begin = time.perf_counter()
        for _ in range(1000):
            assert await composing.compose(ties(digests)) == served
        print(f"a hit takes {(time.perf_counter() - begin) * 1e3:.1f} µs, digest included")

    run(test)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"composed_bytes": 0}, "composed_bytes must be an integer ≥ 1, not 0"),
        ({"compose_memory_bytes": True}, "compose_memory_bytes must be an integer ≥ 1, not True"),
        ({"compose_timeout_s": 0}, "compose_timeout_s must be a number > 0, not 0"),
        ({"compose_timeout_s": float("nan")}, "compose_timeout_s must be a number > 0, not nan"),
        ({"compose_seconds": 1}, "unknown key 'compose_seconds' .* compose_timeout_s"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_at_start(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    """With its name, its value and what would be right."""
    with pytest.raises(UnsupportedEngine, match=message):
        PluginConfig.from_additional_config({"task_vectors": {"store": str(tmp_path), **settings}})
