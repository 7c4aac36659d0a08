"""`POST /v1/task_vectors/interference`: right figures, clear errors, nobody else waits."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from outfitter.errors import ApiError
from outfitter.routes import interference as route
from taskvectors.errors import BaseMismatch, VectorNotFound
from taskvectors.format import write_vector
from taskvectors.interference import ADVICE, compare
from taskvectors.vector import BaseInfo, DenseDelta, TaskVector
from tests.outfitter.harness import FINGERPRINT, Running, make_vector, publish, push
from tests.outfitter.test_completions import error_of

PATH = "/v1/task_vectors/interference"
NAMES = ("cmp/a", "cmp/b", "cmp/c")


@pytest.fixture(scope="module")
def files(gateway: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Three vectors that the gateway has."""
    folder = tmp_path_factory.mktemp("compared")
    found = {name: make_vector(folder / name[-1], seed=50 + i) for i, name in enumerate(NAMES)}
    with gateway.client as client:
        for name, file in found.items():
            push(client, file, name)
        yield found
        for name in found:
            client.delete(f"/v1/task_vectors/{name}")


def ask(client: httpx.Client, *references: object, **fields: object) -> httpx.Response:
    return client.post(PATH, json={"task_vectors": list(references), **fields})


@pytest.mark.parametrize("order", [NAMES, NAMES[::-1], (NAMES[1], NAMES[2], NAMES[0])])
def test_the_answer_equals_the_library(
    client: httpx.Client, files: dict[str, Path], order: tuple[str, ...]
) -> None:
    """In the order and with the names of the request, whatever order was computed first."""
    report = compare({name: files[name] for name in order}).to_json(per_layer=True)
    answer = ask(client, *order, per_layer=True).json()
    assert answer["pairs"] == report["pairs"]
    assert answer["object"] == "interference"
    assert answer["base"] == {"name": "base", "fingerprint": FINGERPRINT}
    assert answer["advice"] == list(ADVICE)
    for name, vector, expected in zip(
        order, answer["task_vectors"], report["vectors"], strict=True
    ):
        entry = client.get(f"/v1/task_vectors/{name}").json()
        assert vector.pop("reference") == name
        assert {key: vector.pop(key) for key in ("name", "version", "digest")} == {
            key: entry[key] for key in ("name", "version", "digest")
        }
        assert vector == {key: value for key, value in expected.items() if key != "name"}


def test_layers_come_only_on_request(client: httpx.Client, files: dict[str, Path]) -> None:
    """By version and by digest, too; the same digests in another form are the same figures."""
    digest = client.get("/v1/task_vectors/cmp/b").json()["digest"]
    (pair,) = ask(client, "cmp/a@1", digest).json()["pairs"]
    (whole,) = ask(client, "cmp/a", "cmp/b", per_layer=True).json()["pairs"]
    assert (pair.pop("left"), pair.pop("right")) == ("cmp/a@1", digest)
    assert "layers" not in pair
    assert list(whole["layers"]) == ["0", "other"]
    assert pair.items() <= whole.items()


def test_what_was_computed_is_remembered(
    client: httpx.Client, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same set in any order starts no second process."""
    first = ask(client, "cmp/a", "cmp/c").json()["pairs"]
    monkeypatch.setattr(route, "_computed", None)
    assert ask(client, "cmp/a", "cmp/c").json()["pairs"] == first
    assert ask(client, "cmp/c", "cmp/a").status_code == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "must be a list of references"),
        ({"task_vectors": {"cmp/a": 1, "cmp/b": 1}}, "must be a list of references"),
        ({"task_vectors": "cmp/a"}, "must be a list of references"),
        ({"task_vectors": ["cmp/a", 3]}, "must be a list of references"),
        ({"task_vectors": []}, "needs 2 to 16 task vectors, not 0"),
        ({"task_vectors": ["cmp/a"]}, "needs 2 to 16 task vectors, not 1"),
        ({"task_vectors": ["cmp/a"] * 17}, "needs 2 to 16 task vectors, not 17"),
        ({"task_vectors": ["cmp/a", "cmp/a"]}, "'cmp/a' and 'cmp/a' are the same task vector"),
        ({"task_vectors": ["cmp/a", "cmp/a@1"]}, "'cmp/a' and 'cmp/a@1' are the same"),
        ({"task_vectors": ["cmp/a", "no such"]}, "invalid reference 'no such'"),
        ({"task_vectors": ["cmp/a", "cmp/b"], "layers": True}, "unknown field 'layers'"),
        ({"task_vectors": ["cmp/a", "cmp/b"], "per_layer": 1}, "per_layer must be true or false"),
    ],
)
def test_a_wrong_request_is_told_so(
    client: httpx.Client, files: dict[str, Path], body: dict, words: str
) -> None:
    """400 that says what was wrong and what would be right."""
    response = client.post(PATH, json=body)
    assert response.status_code == 400, response.text
    assert words in error_of(response)["message"]


def test_an_unknown_reference_is_not_found(client: httpx.Client, files: dict[str, Path]) -> None:
    """404 with its name."""
    response = ask(client, "cmp/a", "cmp/nobody")
    assert response.status_code == 404
    assert error_of(response)["code"] == "task_vector_not_found"
    assert "'cmp/nobody'" in error_of(response)["message"]


def test_vectors_of_two_bases_are_refused(
    gateway: Running, client: httpx.Client, files: dict[str, Path], tmp_path: Path
) -> None:
    """422, by the fingerprints in headers, and by shapes where one has none."""
    foreign, misshapen = (
        publish(
            gateway.config, make_vector(tmp_path / "v", fingerprint=fingerprint, shape=shape), name
        )
        for name, fingerprint, shape in (
            ("cmp/foreign", "f" * 64, (8, 4)),
            ("cmp/misshapen", None, (4, 8)),
        )
    )
    for digest, word in ((foreign, "'cmp/a' belongs to the base bbb"), (misshapen, "[4, 8]")):
        response = ask(client, "cmp/a", digest)
        assert response.status_code == 422
        assert error_of(response)["code"] == "base_mismatch"
        assert word in error_of(response)["message"]


def test_a_vector_may_be_called_interference(client: httpx.Client, tmp_path: Path) -> None:
    """The route takes POST alone: the name stays free."""
    push(client, make_vector(tmp_path / "v", seed=60), "interference")
    assert client.get(PATH).json()["name"] == "interference"
    assert client.delete(PATH).json()["deleted"] is True


def test_others_are_served_while_a_comparison_runs(
    client: httpx.Client, gateway: Running, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits in a process of its own; the loop goes on, and an equal request joins it."""
    release, started = threading.Event(), []
    computed = route._computed

    async def held(files: dict[str, str]) -> bytes:
        started.append(files)
        await asyncio.to_thread(release.wait, 20)
        return await computed(files)

    monkeypatch.setattr(route, "_computed", held)
    answers: list[httpx.Response] = []

    def request() -> None:
        with gateway.client as own:
            answers.append(ask(own, "cmp/b", "cmp/c"))

    threads = [threading.Thread(target=request) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        assert client.get("/health/live").status_code == 200
        assert not answers
    finally:
        release.set()
        for thread in threads:
            thread.join()
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len(started) == 1


def test_too_many_waiting_are_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """503 with a time to come back, instead of a queue without end."""

    async def scene() -> None:
        comparisons, gate = route.Comparisons(), asyncio.Event()

        async def held(files: dict[str, str]) -> bytes:
            await gate.wait()
            return b"{}"

        monkeypatch.setattr(route, "_computed", held)
        waiting = [
            asyncio.create_task(comparisons.report({str(i): "x"})) for i in range(route.MAX_WAITING)
        ]
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="too many comparisons") as told:
            await comparisons.report({"more": "x"})
        assert told.value.status == 503
        gate.set()
        assert await asyncio.gather(*waiting) == [b"{}"] * route.MAX_WAITING
        assert await comparisons.report({"more": "x"}) == b"{}"

    asyncio.run(scene())


def test_only_so_many_reports_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was asked for longest ago goes first."""
    started: list[str] = []

    async def computed(files: dict[str, str]) -> bytes:
        started.extend(files)
        return b"{}"

    async def scene() -> None:
        comparisons = route.Comparisons()
        for name in [*map(str, range(route.MAX_REMEMBERED)), "0", "new", "0", "1"]:
            await comparisons.report({name: "x"})

    monkeypatch.setattr(route, "_computed", computed)
    asyncio.run(scene())
    assert started == [*map(str, range(route.MAX_REMEMBERED)), "new", "1"]


def test_a_process_that_takes_too_long_is_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """504 says what to do; the process is gone."""
    child = tmp_path / "child"
    mark = tmp_path / "pid"
    child.write_text(f"#!/bin/sh\necho $$ > {mark}\nexec sleep 60\n")
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    monkeypatch.setattr(route, "LIMIT_S", 3)
    with pytest.raises(ApiError, match="run `outfitter interference`") as told:
        asyncio.run(route._computed({"a": "x"}))
    assert told.value.status == 504
    assert not Path("/proc", mark.read_text().strip()).exists()


def test_errors_of_the_process_are_translated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Ours by their class, a file that went away as not found, the rest in the log alone."""
    one = str(make_vector(tmp_path / "a"))
    other = str(make_vector(tmp_path / "b", fingerprint="f" * 64))
    with pytest.raises(BaseMismatch, match="do not go together"):
        asyncio.run(route._computed({"a": one, "b": other}))
    with pytest.raises(VectorNotFound):
        asyncio.run(route._computed({"a": one, "b": str(tmp_path / "gone")}))
    for answer in (b"", json.dumps({"error": {"type": "OSError", "message": "/secret"}}).encode()):
        with pytest.raises(ApiError, match="the gateway's log says more") as told:
            route._check(answer, b"Traceback /secret", 1)
        assert told.value.status == 500
        assert "/secret" in caplog.text
        caplog.clear()


def test_a_comparison_that_needs_too_much_memory_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """422 says what to do, by the limit of the process or by the kernel's choice."""
    values = np.ones((4096, 4096), np.float16)
    vector = TaskVector(BaseInfo("base"), {"up.weight": DenseDelta(values)})
    files = {name: str(tmp_path / name) for name in "ab"}
    for file in files.values():
        write_vector(vector, file)
    monkeypatch.setattr(route, "MEMORY_BYTES", 50 << 20)
    with pytest.raises(ApiError, match="run `outfitter interference`") as told:
        asyncio.run(route._computed(files))
    assert (told.value.status, told.value.code) == (422, "interference_too_large")
    with pytest.raises(ApiError, match="more memory"):
        route._check(b"", b"", -signal.SIGKILL)


def test_the_process_compares_nothing_without_its_parent(tmp_path: Path) -> None:
    """It looks before it begins, so that a gateway's death leaves none behind."""
    request = {"files": {}, "seconds": 60, "memory_bytes": 1 << 30, "parent": 1}
    command = (sys.executable, "-P", "-m", "taskvectors.interference")
    done = subprocess.run(
        command, input=json.dumps(request), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
