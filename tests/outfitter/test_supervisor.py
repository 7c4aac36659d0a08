"""The engine is restarted when it dies, and never outlives the gateway.

The engine here is a stand-in (fake_engine.py) with a child of its own in another session, which is
harder to catch than vLLM's. Real vLLM is exercised in tests/end_to_end.
"""

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from outfitter.engine.supervisor import Supervisor, private_directory
from taskvectors.errors import InvalidCheckpoint
from tests.outfitter.harness import Running, free_port, make_config, running, wait_for

BODY = {"model": "base-model"}


def pids(root: Path) -> list[int]:
    """Every engine process there ever was."""
    with contextlib.suppress(FileNotFoundError):
        return [int(pid) for pid in (root / "pids").read_text().split()]
    return []


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    return False


def nobody_left(root: Path) -> bool:
    return not any(is_alive(pid) for pid in pids(root))


def statuses(url: str, results: list, **body: object) -> threading.Thread:
    """Ask in the background."""

    def ask() -> None:
        with contextlib.suppress(httpx.HTTPError):
            results.append(httpx.post(f"{url}/v1/completions", json={**BODY, **body}, timeout=30))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Running]:
    """A gateway whose engine may be killed."""
    with running(make_config(tmp_path), "--pids", str(tmp_path / "pids")) as found:
        yield found.wait_ready()
    assert nobody_left(tmp_path)


def test_a_dead_engine_is_told_and_comes_back(own: Running, tmp_path: Path) -> None:
    """Requests in flight get OpenAI's error, later ones a 503 to retry, then service is back."""
    results: list[httpx.Response] = []
    waiting = statuses(own.url, results, prompt="hang")
    time.sleep(0.5)
    with own.client as client:
        died = client.post("/v1/completions", json={**BODY, "prompt": "die"})
        assert died.status_code == 502
        assert died.json()["error"]["code"] == "engine_died"
        assert died.headers["retry-after"]
        waiting.join()
        assert results[0].status_code == 502
        assert results[0].json()["error"]["type"] == "server_error"
        wait_for(lambda: client.get("/health/ready").status_code == 503, 5)
        refused = client.post("/v1/completions", json={**BODY, "prompt": "x"})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert refused.json()["error"]["code"] == "engine_not_ready"
        assert client.get("/health/live").status_code == 200
        own.wait_ready()
        ready = client.get("/health/ready").json()
        assert ready["engine_restarts"] == 1
        assert client.post("/v1/completions", json={**BODY, "prompt": "x"}).status_code == 200
    assert not any(is_alive(pid) for pid in pids(tmp_path)[:2])
    assert own.failures == []


def test_a_stream_whose_engine_dies_ends_with_an_error(own: Running) -> None:
    """The last event says what happened; what came before stays."""
    with own.client as client:
        body = {**BODY, "prompt": "die midway", "stream": True}
        text = client.post("/v1/completions", json=body).text
    events = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    assert json.loads(events[0])["choices"][0]["text"] == "one"
    assert json.loads(events[-1])["error"]["code"] == "engine_died"
    assert text.endswith("\n\n")


def test_an_engine_that_never_starts_is_given_up(tmp_path: Path) -> None:
    """After a few attempts the gateway says so, instead of trying for ever."""
    with running(make_config(tmp_path), "--fail") as found:
        wait_for(lambda: bool(found.failures))
        assert "could not be started" in found.failures[0]
        assert len([line for line in found.announced if "exited with status 3" in line]) == 3
        response = httpx.get(f"{found.url}/health/ready")
        assert response.json()["error"]["message"] == "the engine could not be started"


def test_a_base_that_cannot_be_read_is_a_failure(tmp_path: Path) -> None:
    """The gateway answers that it is not ready, and says why to whoever started it."""

    def prepare(config: object) -> None:
        raise InvalidCheckpoint("no safetensors here")

    with running(make_config(tmp_path), prepare=prepare) as found:
        wait_for(lambda: bool(found.failures))
        assert "no safetensors here" in found.failures[0]
        assert httpx.get(f"{found.url}/health/ready").status_code == 503
        assert httpx.post(f"{found.url}/v1/completions", json=BODY).status_code == 503
        assert httpx.post(f"{found.url}/v1/task_vectors?name=x", content=b"").status_code == 503


def test_an_error_when_ready_is_told_and_retried(tmp_path: Path) -> None:
    """An engine that nobody can use is started again, and its trouble is announced."""
    troubles = [ValueError("odd names"), None]

    def on_ready() -> None:
        if trouble := troubles.pop(0):
            raise trouble

    with running(make_config(tmp_path), on_ready=on_ready) as found:
        found.wait_ready()
        assert any("ValueError('odd names')" in line for line in found.announced)
        assert httpx.get(f"{found.url}/health/ready").json()["engine_restarts"] == 1
    assert troubles == found.failures == []


def test_an_error_at_every_start_is_given_up(tmp_path: Path) -> None:
    """What never becomes ready is a failure, as if the engine had died each time."""

    def on_ready() -> None:
        raise ValueError("odd names")

    with running(make_config(tmp_path), "--pids", str(tmp_path / "pids"), on_ready=on_ready) as own:
        wait_for(lambda: bool(own.failures), 60)
        assert "could not be started" in own.failures[0]
        assert len([line for line in own.announced if "odd names" in line]) == 3
        assert httpx.get(f"{own.url}/health/ready").status_code == 503
        wait_for(lambda: nobody_left(tmp_path), 10)


@pytest.mark.parametrize("stage", ["prepare", "supervise"])
def test_an_unforeseen_error_is_a_failure(
    tmp_path: Path,
    stage: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It reaches whoever started the gateway, and the log has its traceback."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("surprise")

    if stage == "supervise":
        monkeypatch.setattr(Supervisor, "_spawn", fail)
    with running(make_config(tmp_path), prepare=fail if stage == "prepare" else None) as found:
        wait_for(lambda: bool(found.failures))
        assert "ZeroDivisionError('surprise')" in found.failures[0]
        assert httpx.get(f"{found.url}/health/ready").status_code == 503
    assert any(record.exc_info for record in caplog.records)


def test_the_engines_log_is_passed_on(gateway: Running) -> None:
    """Line by line, as it comes."""
    assert "fake engine started" in gateway.log


def test_the_sockets_directory_is_private_and_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else can enter it, and its path fits a unix socket wherever TMPDIR points."""
    monkeypatch.setattr("tempfile.tempdir", None)
    directory = private_directory()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert len(str(directory / "engine.sock")) < 104
    directory.rmdir()


@contextlib.contextmanager
def process(root: Path, drain: int = 5, *flags: str) -> Iterator[tuple[subprocess.Popen, str]]:
    port = free_port()
    command = [sys.executable, "-m", "tests.outfitter.serve_fake", str(root), str(port), str(drain)]
    child = subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        yield child, url
    finally:
        if child.poll() is None:
            child.kill()
        child.communicate()


def is_ready(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/health/ready").status_code == 200
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_behind(tmp_path: Path, number: signal.Signals) -> None:
    """However the gateway ends, the engine and its children end too."""
    with process(tmp_path) as (child, url):
        wait_for(lambda: is_ready(url))
        assert len(pids(tmp_path)) == 2
        assert all(is_alive(pid) for pid in pids(tmp_path))
        child.send_signal(number)
        status = child.wait(timeout=20)
        wait_for(lambda: nobody_left(tmp_path), 10)
    expected = {signal.SIGTERM: 0, signal.SIGINT: 130, signal.SIGKILL: -9}
    assert status == expected[number]


def test_a_second_interrupt_ends_the_drain(tmp_path: Path) -> None:
    """Ctrl-C twice does not wait for running requests, and still leaves nobody."""
    with process(tmp_path, 60) as (child, url):
        wait_for(lambda: is_ready(url))
        waiting = statuses(url, [], prompt="hang")
        time.sleep(0.5)
        child.send_signal(signal.SIGINT)
        time.sleep(0.5)
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=15) == 130
        waiting.join()
    assert nobody_left(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_private_directory_goes_with_the_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Whoever is left last removes it."""
    with tempfile.TemporaryDirectory() as folder:  # short enough for the path of a socket
        monkeypatch.setenv("TMPDIR", folder)
        with process(tmp_path) as (child, url):
            wait_for(lambda: is_ready(url))
            assert len(list(Path(folder).glob("outfitter-*"))) == 1
            child.send_signal(number)
            child.wait(timeout=20)
            wait_for(lambda: not list(Path(folder).glob("outfitter-*")), 10)
            wait_for(lambda: nobody_left(tmp_path), 10)


def test_an_engine_that_says_it_is_dead_is_replaced(own: Running) -> None:
    """vLLM's API process may outlive its core: its health then is 503, and another one starts."""
    with own.client as client:
        assert (
            client.post("/v1/completions", json={**BODY, "prompt": "fall ill"}).status_code == 200
        )
        wait_for(lambda: client.get("/health/ready").status_code == 503)
        own.wait_ready()
        assert any("reports that it is dead" in line for line in own.announced)
        assert client.post("/v1/completions", json={**BODY, "prompt": "x"}).status_code == 200


def test_the_guards_death_ends_the_engine(tmp_path: Path) -> None:
    """The kernel kills the engine with its guard; the gateway starts another."""
    with process(tmp_path) as (child, url):
        wait_for(lambda: is_ready(url))
        engine = pids(tmp_path)[0]
        guard = int(Path(f"/proc/{engine}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(guard, signal.SIGKILL)
        wait_for(lambda: not is_alive(engine), 5)
        wait_for(lambda: len(pids(tmp_path)) == 4 and is_ready(url))
        os.kill(pids(tmp_path)[1], signal.SIGKILL)  # an orphan that no guard was left to see
        child.terminate()
        child.wait(timeout=20)
    assert nobody_left(tmp_path)


def test_running_requests_are_drained(tmp_path: Path) -> None:
    """SIGTERM lets a running answer finish and takes no new one."""
    with process(tmp_path, 10) as (child, url):
        wait_for(lambda: is_ready(url))
        results: list[httpx.Response] = []
        threads = [statuses(url, results, prompt="sleep 1.5")]
        threads += [statuses(url, results, prompt="slowly", stream=True)]
        time.sleep(0.5)
        child.terminate()
        time.sleep(0.3)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health/live")
        for thread in threads:
            thread.join()
        assert child.wait(timeout=20) == 0
    assert [result.status_code for result in results] == [200, 200]
    assert all("data" not in r.text or r.text.endswith("data: [DONE]\n\n") for r in results)
    assert nobody_left(tmp_path)


def test_draining_ends_in_time_with_an_error(tmp_path: Path) -> None:
    """A request that does not finish within the drain is told so, streamed or not."""
    with process(tmp_path, 1) as (child, url):
        wait_for(lambda: is_ready(url))
        results: list[httpx.Response] = []
        threads = [statuses(url, results, prompt="hang")]
        threads += [statuses(url, results, prompt="hang midway", stream=True)]
        time.sleep(0.5)
        child.terminate()
        for thread in threads:
            thread.join()
        child.wait(timeout=20)
    whole, streamed = sorted(results, key=lambda result: "data:" in result.text)
    assert whole.status_code == 503
    assert whole.json()["error"]["code"] == "shutting_down"
    assert '"code": "shutting_down"' in streamed.text
    assert nobody_left(tmp_path)


def test_a_gateway_that_cannot_serve_exits_with_an_error(tmp_path: Path) -> None:
    """Status 1 and a line on stderr."""
    with process(tmp_path, 1, "--fail") as (child, _):
        _, stderr = child.communicate(timeout=30)
    assert child.returncode == 1
    assert b"the engine could not be started" in stderr
    assert b"Traceback" not in stderr
