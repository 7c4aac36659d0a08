"""What is logged: whose request it was and how it ended, and never what was said."""

import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from outfitter.observers import logs
from tests.outfitter.harness import (
    Running,
    free_port,
    make_config,
    make_vector,
    push,
    running,
    wait_for,
)

CANARY = "canary-7c41d9"


class Log:
    """Everything that is logged while a test runs, as `serve` would log it."""

    def __init__(self, format_: str) -> None:
        self._stream = io.StringIO()
        logs.configure(format_, access_log=True, stream=self._stream)

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    @property
    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.text.splitlines()]

    def last(self, logger: str) -> dict:
        """The newest record of a logger, which may still be on its way."""
        wait_for(lambda: any(record["logger"] == logger for record in self.records))
        return [record for record in self.records if record["logger"] == logger][-1]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Logging is the whole process's."""
    root, names = logging.getLogger(), ("outfitter", logs.ACCESS)
    handlers, levels = root.handlers[:], [logging.getLogger(name).level for name in names]
    level = root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, kept in zip(names, levels, strict=True):
        logging.getLogger(name).setLevel(kept)


@pytest.fixture
def log() -> Log:
    return Log("json")


def ask(client: httpx.Client, prompt: str = "p", **fields: object) -> httpx.Response:
    headers = {"x-request-id": "mine-1"}
    body = {"model": "base-model", "prompt": prompt, **fields}
    return client.post("/v1/completions", json=body, headers=headers)


def test_a_request_is_one_line(log: Log, client: httpx.Client) -> None:
    """Who, what, how long, how many tokens."""
    ask(client, "some words", stream=True)
    record = log.last(logs.ACCESS)
    assert record.pop("time").endswith("Z")
    assert record.pop("seconds") >= record.pop("first_token_s") > 0
    assert record.pop("inter_token_s") >= 0
    assert record == {
        "level": "info",
        "logger": "outfitter.access",
        "message": "request",
        "request_id": "mine-1",
        "client": "127.0.0.1",
        "method": "POST",
        "route": "/v1/completions",
        "tenant": "open",
        "key": None,
        "status": 200,
        "code": None,
        "model": "base-model",
        "saved_model": None,
        "variant": None,
        "loadout": "base",
        "stream": True,
        "prompt_tokens": 2,
        "cached_tokens": 1,
        "completion_tokens": 3,
    }
    assert len(log.records) == 1


def test_a_refusal_says_its_status_and_code(log: Log, client: httpx.Client) -> None:
    """As the client was told them."""
    ask(client, task_vectors={"nobody": 1})
    record = log.last(logs.ACCESS)
    assert (record["status"], record["code"]) == (404, "task_vector_not_found")


def test_a_change_is_logged(log: Log, own: Running, tmp_path: Path) -> None:
    """Also where requests are not."""
    logging.getLogger(logs.ACCESS).setLevel(logging.WARNING)
    with own.client as client:
        push(client, make_vector(tmp_path / "v"), "skill")
        assert client.get("/v1/task_vectors/skill").status_code == 200
        assert client.delete("/v1/task_vectors/skill").status_code == 200
    record = log.last(logs.CHANGES)
    assert (record["method"], record["path"]) == ("DELETE", "/v1/task_vectors/skill")
    assert record["status"] == 200
    assert [found["logger"] for found in log.records] == [logs.CHANGES] * 2


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Running]:
    with running(make_config(tmp_path)) as found:
        yield found.wait_ready()


def test_nothing_that_was_said_is_told(own: Running, tmp_path: Path) -> None:
    """No text of a prompt or an answer is in any log of any level, or in any metric."""
    log = Log("json")
    logging.getLogger().setLevel(logging.DEBUG)
    logging.getLogger("outfitter").setLevel(logging.DEBUG)
    own.inner.observers.insert(0, lambda outcome: 1 / 0)
    with own.client as client:
        push(client, make_vector(tmp_path / "v"), "skill")
        for fields in (
            {},
            {"stream": True},
            {"task_vectors": {"skill": 1}, "stream": True},
            {"task_vectors": {"nobody": 1}},
            {"stop": [CANARY]},
            {"colour": CANARY},
            {"model": "other"},
        ):
            ask(client, f"{CANARY} say it", **fields)
        chat = [{"role": "user", "content": CANARY}]
        client.post("/v1/chat/completions", json={"model": "base-model", "messages": chat})
        client.post("/v1/completions", content=f'{{"prompt": "{CANARY}'.encode())
        metrics = client.get("/metrics").text
        wait_for(lambda: log.text.count("outfitter.access") >= 9)
    assert "ZeroDivisionError" in log.text
    assert CANARY not in log.text
    assert CANARY not in metrics
    assert CANARY not in "".join(own.log + own.announced + own.failures)


@pytest.mark.parametrize("given", ["a b", "x" * 129, "", "ä", None])
def test_an_id_that_is_none_is_replaced(client: httpx.Client, given: str | None) -> None:
    """The client and the engine are told the same one."""
    headers = {} if given is None else {"x-request-id": given.encode()}
    body = {"model": "base-model", "prompt": "echo"}
    response = client.post("/v1/completions", json=body, headers=headers)
    told = response.headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", told)
    seen = json.loads(response.json()["choices"][0]["text"])["headers"]
    assert {name.lower(): value for name, value in seen.items()}["x-request-id"] == told


def test_who_has_no_key_fills_no_log_of_changes(log: Log, tmp_path: Path) -> None:
    """What was asked without one changed nothing: it is a request like others."""
    with running(make_config(tmp_path, auth="keys")) as gateway, gateway.client as client:
        for path in ("/v1/completions", "/v1/tenants", "/v1/loadouts"):
            assert client.post(path, json={}).status_code == 401
        wait_for(lambda: len([r for r in log.records if r.get("status") == 401]) == 3)
    told = {r["message"] for r in log.records if r.get("status") == 401}
    assert told == {"request"}


def test_an_id_is_told_with_every_answer(client: httpx.Client) -> None:
    """Errors and routes of the gateway's own as well."""
    for path in ("/health/live", "/v1/nowhere", "/v1/models"):
        answer = client.get(path, headers={"x-request-id": "mine-2"})
        assert answer.headers["x-request-id"] == "mine-2"


def test_text_cannot_forge_a_line() -> None:
    """Line ends and control characters become question marks; JSON escapes them."""
    for format_ in ("text", "json"):
        log = Log(format_)
        logs.changes.info("a\nb \x1b[2J", extra={logs.FIELDS: {"path": "x\r\ny"}})
        [line] = log.text.splitlines()
        assert line.isprintable()


def test_text_says_the_same(client: httpx.Client) -> None:
    """For people: without what is not known."""
    log = Log("text")
    ask(client)
    wait_for(lambda: "request" in log.text)
    assert (
        " INFO outfitter.access [mine-1] request client=127.0.0.1 method=POST route=/v1/completions"
        in log.text
    )
    assert "tenant=open status=200" in log.text
    assert "None" not in log.text


def test_an_exception_has_its_traceback(log: Log) -> None:
    """In its own field, so that the line stays one."""
    try:
        raise ValueError("wrong")
    except ValueError:
        logging.getLogger("outfitter").exception("it failed")
    [record] = log.records
    assert record["message"] == "it failed"
    assert "ValueError: wrong" in record["exception"]


SERVE = """
import sys
from pathlib import Path
from outfitter.commands.serve import run
from outfitter.vectors import Base
from tests.outfitter.harness import FINGERPRINT, SHAPES, fake_command, make_config

config = make_config(Path(sys.argv[1]), port=int(sys.argv[2]), log_format="json")
base = Base(FINGERPRINT, SHAPES)
sys.exit(run(config, command=fake_command(), prepare_base=lambda config: base))
"""


def test_a_whole_process_logs_json(tmp_path: Path) -> None:
    """From its start to its end, the engine's lines included: nothing else is on standard error."""
    port = free_port()
    command = [sys.executable, "-c", SERVE, str(tmp_path), str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: status_of(f"{url}/health/ready") == 200)
        body = {"model": "base-model", "prompt": CANARY}
        assert httpx.post(f"{url}/v1/completions", json=body).status_code == 200
        process.terminate()
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    records = [json.loads(line) for line in errors.splitlines()]
    said = [(record["logger"], record["message"]) for record in records]
    assert ("outfitter.engine", "fake engine started") in said
    assert ("outfitter.access", "request") in said
    assert any(text.startswith("ready: base-model at") for _, text in said)
    assert CANARY not in errors


def status_of(url: str) -> int | None:
    try:
        return httpx.get(url).status_code
    except httpx.HTTPError:
        return None
