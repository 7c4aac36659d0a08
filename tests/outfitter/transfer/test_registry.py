"""Artefacts go to a real registry and come back; a registry that lies is noticed."""

import base64
import contextlib
import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from outfitter.config import InvalidConfig
from outfitter.errors import SourceFailed
from outfitter.transfer import oci
from outfitter.transfer import registry as registry_module
from outfitter.transfer.fetched import no_progress
from outfitter.transfer.modelpack import MANIFEST, Package, pack
from outfitter.transfer.registry import Place, fetch, push
from tests.outfitter.transfer import registries
from tests.outfitter.transfer.test_oci import DATA, DETAILS, DIGEST, VERSION

real = pytest.mark.skipif(
    registries.PROGRAM is None, reason="no registry program: apt-get install docker-registry"
)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real registry that the tests of this module share."""
    with registries.registry(tmp_path_factory.mktemp("registry") / "r") as found:
        yield found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The task vector file."""
    path = tmp_path / "json.safetensors"
    path.write_bytes(DATA)
    return path


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@real
def test_a_version_survives_a_registry(host: str, file: Path, tmp_path: Path) -> None:
    """File, details, card and signature; by tag and by digest."""
    steps: list[int] = []
    place = Place.parse(f"{host}/acme/json:3")
    digest = push(VERSION, file, place, progress=lambda step, _: steps.append(step))
    assert sum(steps) == len(DATA)
    for number, end in enumerate((":3", f"@sha256:{digest}")):
        target = tmp_path / f"got-{number}"
        url = f"oci://{host}/acme/json{end}"
        found = oci.fetch(url, target, limit=len(DATA), progress=no_progress)
        assert target.read_bytes() == DATA
        assert (found.name, found.details, found.signature) == ("json", DETAILS, '{"b": 1}')
        assert (found.source, found.revision) == (url, f"sha256:{digest}")


@real
def test_a_registry_has_what_a_layout_has(host: str, file: Path, tmp_path: Path) -> None:
    """The same manifest, byte for byte."""
    push(VERSION, file, Place.parse(f"{host}/acme/same:1"))
    digest = oci.export_layout(VERSION, file, tmp_path / "layout")
    url = f"http://{host}/v2/acme/same/manifests/1"
    answer = httpx.get(url, headers={"accept": MANIFEST})
    assert answer.content == (tmp_path / "layout" / "blobs" / "sha256" / digest).read_bytes()
    assert answer.headers["docker-content-digest"] == f"sha256:{digest}"
    blob = httpx.get(f"http://{host}/v2/acme/same/blobs/sha256:{DIGEST}")
    assert blob.content == DATA


@real
def test_what_a_registry_has_is_not_uploaded_again(host: str, file: Path) -> None:
    """A second tag of the same file moves no bytes of it; a tag can move."""
    steps: list[int] = []
    place = Place.parse(f"{host}/acme/again:1")
    push(VERSION, file, place)
    other = dataclasses.replace(VERSION, version=4)
    push(other, file, place, progress=lambda step, _: steps.append(step))
    assert steps == []


@real
@pytest.mark.parametrize("end", ["/acme/json:gone", "/gone:1", f"/acme/json@sha256:{'ab' * 32}"])
def test_what_is_not_there_is_told(host: str, tmp_path: Path, end: str) -> None:
    """In no time, with the registry's status."""
    with pytest.raises(SourceFailed, match="answered 404 for the manifest"):
        fetch(f"oci://{host}{end}", tmp_path / "got", limit=1, progress=no_progress)


@real
def test_credentials_are_dockers(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry that asks gets what `docker login` wrote, and refuses those who have none."""
    with registries.registry(tmp_path / "r", asks=True) as host:
        place = Place.parse(f"{host}/acme/json:3")
        with pytest.raises(SourceFailed, match=r"refuses|answered 401"):
            push(VERSION, file, place)
        login = base64.b64encode(f"{registries.USER}:{registries.PASSWORD}".encode()).decode()
        home = tmp_path / "home" / ".docker"
        home.mkdir(parents=True)
        (home / "config.json").write_text(json.dumps({"auths": {host: {"auth": login}}}))
        push(VERSION, file, place)
        fetch(f"oci://{place}", tmp_path / "got", limit=2**30, progress=no_progress)
        assert (tmp_path / "got").read_bytes() == DATA
        (home / "config.json").write_text(json.dumps({"auths": {host: {"auth": "eDp5"}}}))
        with pytest.raises(SourceFailed, match=r"refuses|answered 401") as caught:
            fetch(f"oci://{place}", tmp_path / "not", limit=2**30, progress=no_progress)
        assert "eDp5" not in str(caught.value)


def test_a_registry_that_does_not_answer_is_told_at_once(tmp_path: Path) -> None:
    """Without minutes of retries."""
    with pytest.raises(SourceFailed, match="does not answer"):
        fetch("oci://127.0.0.1:9/a/b:1", tmp_path / "got", limit=1, progress=no_progress)


Answer = tuple[int, dict[str, str], bytes]


@contextlib.contextmanager
def _lying(answers: Callable[[str], Answer]) -> Iterator[str]:
    """A stand-in that answers whatever a registry should not."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answers(self.path)
            self.send_response(status)
            for key, text in headers.items():
                self.send_header(key, text)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _answers(package: Package, lies: dict[str, Answer]) -> Callable[[str], Answer]:
    honest = {f"sha256:{digest}": data for digest, data in package.blobs.items()}
    honest[f"sha256:{DIGEST}"] = DATA

    def answer(path: str) -> Answer:
        last = path.rstrip("/").rpartition("/")[2]
        if last in lies:
            return lies[last]
        if last == "v2":
            return 200, {}, b"{}"
        if "/manifests/" in path:
            return 200, {"content-type": MANIFEST}, package.manifest
        return 200, {"content-length": str(len(honest[last]))}, honest[last]

    return answer


FILE = f"sha256:{DIGEST}"


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        ({FILE: (200, {}, DATA[:-1] + b"x")}, "other bytes"),
        ({FILE: (200, {}, DATA + b"x" * 10_000_000)}, "other bytes"),
        ({FILE: (200, {}, b"")}, "other bytes"),
        ({FILE: (200, {"content-length": "9999999"}, DATA[:1000])}, "does not answer|other bytes"),
        ({FILE: (200, {"content-encoding": "gzip"}, b"\x1f\x8b" + b"\0" * 99)}, "other bytes"),
        ({FILE: (404, {}, b"")}, "answered 404 for the blob"),
        ({FILE: (500, {}, b"{}")}, "answered 500 for the blob"),
        ({FILE: (302, {"location": "/v2/x/manifests/1"}, b"")}, "other bytes"),
        ({"1": (200, {}, b" " * (5 << 20))}, "the manifest has more than"),
        ({"1": (200, {}, b"[" * 100_000)}, "levels deep"),
        ({"1": (200, {}, b"{}")}, "the artefact is a"),
        ({"1": (500, {}, b"{}")}, "answered 500 for the manifest"),
        ({"1": (401, {}, b"{}")}, "refuses"),
        ({"1": (401, {"www-authenticate": 'Bearer realm=""'}, b"{}")}, "refuses"),
        ({"v2": (401, {"www-authenticate": "Basic"}, b""), "1": (401, {}, b"")}, "refuses"),
    ],
    ids=range(15),
)
def test_a_registry_that_lies_is_noticed(tmp_path: Path, lie: dict[str, Answer], why: str) -> None:
    """By digest and size, whatever it sends."""
    with _lying(_answers(pack(VERSION), lie)) as host:
        url = f"oci://{host}/acme/json:1"
        with pytest.raises(SourceFailed, match=why):
            fetch(url, tmp_path / "got", limit=2**30, progress=no_progress)


def test_the_stand_in_is_believed_when_it_is_honest(tmp_path: Path) -> None:
    """So what the other tests see is the lie."""
    with _lying(_answers(pack(VERSION), {})) as host:
        url = f"oci://{host}/acme/json:1"
        fetch(url, tmp_path / "got", limit=2**30, progress=no_progress)
    assert hashlib.sha256((tmp_path / "got").read_bytes()).hexdigest() == DIGEST


def test_another_manifest_than_the_digest_is_noticed(tmp_path: Path) -> None:
    """A pin is a pin."""
    with _lying(_answers(pack(VERSION), {})) as host:
        url = f"oci://{host}/acme/json@sha256:{'ab' * 32}"
        with pytest.raises(SourceFailed, match="the registry gave the manifest"):
            fetch(url, tmp_path / "got", limit=2**30, progress=no_progress)


def test_a_file_over_the_limit_is_not_asked_for(tmp_path: Path) -> None:
    """Its size is known before."""
    asked: list[str] = []
    answers = _answers(pack(VERSION), {})

    def answer(path: str) -> Answer:
        asked.append(path)
        return answers(path)

    with _lying(answer) as host:
        url = f"oci://{host}/acme/json:1"
        with pytest.raises(SourceFailed, match="at most 10 are taken"):
            fetch(url, tmp_path / "got", limit=10, progress=no_progress)
    assert not [path for path in asked if DIGEST in path]


@pytest.mark.parametrize(
    "text",
    ["json", "host/", "host/../x:1", "host/A:1", "host/a:b:c", "host/a@sha256:12", "h/a?x=1", "/a"],
)
def test_a_wrong_place_is_refused(text: str) -> None:
    """Nothing of it reaches a URL."""
    with pytest.raises(InvalidConfig, match="invalid place"):
        Place.parse(text)


def test_places_are_read() -> None:
    """With a port, a long path, a tag or a digest."""
    assert Place.parse("ghcr.io/acme/team/json:v3") == Place("ghcr.io", "acme/team/json", "v3")
    assert Place.parse("oci://localhost:5000/json") == Place("localhost:5000", "json", "latest")
    pinned = Place.parse(f"ghcr.io/json@sha256:{'ab' * 32}")
    assert str(pinned) == f"ghcr.io/json@sha256:{'ab' * 32}"
    assert not pinned.is_loopback
    assert Place.parse("[::1]:5000/json:1").is_loopback
    with pytest.raises(InvalidConfig, match="name a tag"):
        push(VERSION, Path("unread"), pinned)


def test_without_oras_it_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an extra."""
    import sys

    monkeypatch.setitem(sys.modules, "oras.provider", None)
    with pytest.raises(InvalidConfig, match=r"outfitter\[oci\]"):
        fetch("oci://localhost/a:1", tmp_path / "got", limit=1, progress=no_progress)
    assert registry_module.TIMEOUT_S[0] > 0
