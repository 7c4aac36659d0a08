"""A file over HTTP: broken connections are resumed, lies are refused, nothing is left behind."""

import hashlib
import random
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from outfitter.errors import SourceFailed, SourceNotAllowed
from outfitter.transfer.sources import fetch
from outfitter.transfer.web import Web
from tests.outfitter.harness import free_port
from tests.outfitter.transfer.web_server import WebServer, cutting, send, send_file, serving

BODY = random.Random(7).randbytes(300_000)
LIMIT = 10**6


def get(web: WebServer, target: Path, path: str = "/a/v.safetensors", **options: object) -> list:
    steps: list = []
    options = {"limit": LIMIT, "allowed": None, **options}
    fetch(f"{web.url}{path}", target, progress=lambda *step: steps.append(step), **options)
    return steps


def refused(web: WebServer, folder: Path, why: str, **options: object) -> None:
    with pytest.raises(SourceFailed, match=why):
        get(web, folder / "target", **options)
    assert list(folder.iterdir()) == []


def test_a_file_is_fetched_with_progress(web: WebServer, tmp_path: Path) -> None:
    """And what its source says of it: a digest, and a name that would fit."""
    web.give("/a/legal.safetensors", BODY)
    steps = []
    fetched = fetch(
        f"{web.url}/a/legal.safetensors?secret=1",
        tmp_path / "t",
        limit=LIMIT,
        allowed=None,
        progress=lambda *step: steps.append(step),
    )
    assert (tmp_path / "t").read_bytes() == BODY
    assert sum(step for step, _ in steps) == len(BODY)
    assert steps[-1][1] == len(BODY)
    assert fetched.revision == f"sha256:{hashlib.sha256(BODY).hexdigest()}"
    assert (fetched.name, fetched.source) == ("legal", f"{web.url}/a/legal.safetensors")
    assert web.requests[0][0].endswith("?secret=1")


def test_a_broken_connection_goes_on_where_it_broke(web: WebServer, tmp_path: Path) -> None:
    """Each byte is sent once."""
    web.give("/a/v.safetensors", BODY, cut=[100_000, 1, 150_000])
    steps = get(web, tmp_path / "t")
    assert (tmp_path / "t").read_bytes() == BODY
    assert sum(step for step, _ in steps) == len(BODY)
    ranges = [headers.get("range") for _, headers in web.requests]
    assert ranges == [None, "bytes=100000-", "bytes=100001-", "bytes=250001-"]


def test_a_cut_on_the_way_is_no_different(web: WebServer, tmp_path: Path) -> None:
    """A proxy that ends connections after some bytes, heads of answers included."""
    web.give("/a/v.safetensors", BODY)
    cuts = random.Random(3).choices((5, 60, 200, 40_000, 90_000), k=6)
    with cutting(web.url, cuts) as proxy:
        fetch(f"{proxy.url}/a/v.safetensors", tmp_path / "t", limit=LIMIT, allowed=None)
        assert proxy.connections > 3, cuts
    assert (tmp_path / "t").read_bytes() == BODY


def test_a_file_that_changed_meanwhile_is_read_anew(web: WebServer, tmp_path: Path) -> None:
    """No mix of two files."""
    other = BODY[::-1]
    answers = [('"one"', BODY, [100_000]), ('"two"', other, None)]

    def answer(request: BaseHTTPRequestHandler) -> None:
        etag, body, cut = answers.pop(0)
        send_file(request, body, etag, cut)

    web.answers["/a/v.safetensors"] = answer
    steps = get(web, tmp_path / "t")
    assert (tmp_path / "t").read_bytes() == other
    assert sum(step for step, _ in steps) == len(other)


def test_without_an_etag_it_begins_anew(web: WebServer, tmp_path: Path) -> None:
    """A weak one does not promise the same bytes."""
    web.give("/a/v.safetensors", BODY, cut=[1000], etag='W/"weak"')
    get(web, tmp_path / "t")
    assert (tmp_path / "t").read_bytes() == BODY
    assert [headers.get("range") for _, headers in web.requests] == [None, None]


def test_a_server_that_is_busy_is_asked_again(web: WebServer, tmp_path: Path) -> None:
    """A few times."""
    states = [503, 429, 502]

    def answer(request: BaseHTTPRequestHandler) -> None:
        if states:
            send(request, states.pop(0), b"busy", {})
        else:
            send_file(request, BODY)

    web.answers["/a/v.safetensors"] = answer
    get(web, tmp_path / "t")
    states[:] = [503] * 99
    refused_folder = tmp_path / "empty"
    refused_folder.mkdir()
    refused(web, refused_folder, "answered 503")
    assert len(states) == 93


def test_a_server_that_is_not_there_is_given_up(tmp_path: Path) -> None:
    """With its name, and the reason."""
    url = f"http://127.0.0.1:{free_port()}/v.safetensors"
    with pytest.raises(SourceFailed, match=f"cannot read {url}: .*refused"):
        fetch(url, tmp_path / "t", limit=LIMIT, allowed=None)
    assert list(tmp_path.iterdir()) == []


Lie = Callable[[BaseHTTPRequestHandler], None]


def endless(request: BaseHTTPRequestHandler) -> None:
    """A chunked body without an end."""
    request.send_response(200)
    request.send_header("transfer-encoding", "chunked")
    request.end_headers()
    while True:
        request.wfile.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")


def boundless(request: BaseHTTPRequestHandler) -> None:
    """A body that ends with the connection, and so never."""
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(b"x" * 0x10000)


def longer(request: BaseHTTPRequestHandler) -> None:
    """More than it said: by range, the rest and then some."""
    if request.headers.get("range"):
        rest = BODY[1000:] + b"more"
        span = f"bytes 1000-{len(BODY) - 1}/{len(BODY)}"
        send(request, 206, rest, {"etag": '"one"', "content-range": span})
    else:
        send_file(request, BODY, cut=[1000])


def other_range(request: BaseHTTPRequestHandler) -> None:
    if request.headers.get("range"):
        send(request, 206, BODY, {"etag": '"one"', "content-range": f"bytes 0-9/{len(BODY)}"})
    else:
        send_file(request, BODY, cut=[1000])


def other_etag(request: BaseHTTPRequestHandler) -> None:
    if request.headers.get("range"):
        span = f"bytes 1000-{len(BODY) - 1}/{len(BODY)}"
        send(request, 206, BODY[1000:], {"etag": '"two"', "content-range": span})
    else:
        send_file(request, BODY, cut=[1000])


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        (endless, "sends more than 1000000 bytes"),
        (boundless, "sends more than 1000000 bytes"),
        (longer, "more than 300000 bytes"),
        (other_range, "answered with the range"),
        (other_etag, "changed while it was read"),
        (lambda r: send(r, 200, b"", {"content-length": str(10**12)}), "at most 1000000 are taken"),
        (lambda r: send(r, 200, b"x", {"content-length": "9" * 4000}), "cannot read"),
        (lambda r: send(r, 200, b"x", {"content-encoding": "gzip"}), "coding 'gzip'"),
        (
            lambda r: send(r, 206, BODY, {"content-range": "bytes 5-9/99"}),
            "answered with the range",
        ),
        (lambda r: send(r, 204, b"", {}), "answered 204"),
        (lambda r: send(r, 404, b"", {}), "answered 404"),
        (lambda r: send(r, 302, b"", {"location": "file:///etc/passwd"}), "not safe"),
        (lambda r: send(r, 302, b"", {"location": "ftp://127.0.0.1/v"}), "not safe"),
        (lambda r: send(r, 302, b"", {"location": "http://[::1/v"}), "cannot read"),
        (lambda r: send(r, 302, b"", {"location": "http://127.0.0.1:999999/v"}), "cannot read"),
        (lambda r: send(r, 302, b"", {"location": "http://a%zz b/v"}), "cannot read"),
        (lambda r: send(r, 302, b"", {"location": r.path}), "more than 5 times"),
        (lambda r: send(r, 200, b"x", {"x-long": "y" * 200_000}), "cannot read"),
    ],
)
def test_a_lying_server_is_refused(web: WebServer, tmp_path: Path, lie: Lie, why: str) -> None:
    """Nothing is left behind."""
    web.answers["/a/v.safetensors"] = lie
    refused(web, tmp_path, why)


def test_a_server_that_drips_is_given_up(
    web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would hold a place for hours."""
    monkeypatch.setattr("outfitter.transfer.download.GRACE_S", 0.2)

    def drip(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("content-length", "100000")
        request.end_headers()
        for _ in range(1000):
            request.wfile.write(b"x")
            time.sleep(0.02)

    web.answers["/a/v.safetensors"] = drip
    refused(web, tmp_path, "too slow")


def test_a_redirect_leads_only_to_what_is_allowed(web: WebServer, tmp_path: Path) -> None:
    """Neither to another host, nor out of the folder."""
    allowed = (f"{web.url}/a/",)
    web.give("/a/there.safetensors", BODY)
    web.redirect("/a/v.safetensors", "there.safetensors")
    get(web, tmp_path / "t", allowed=allowed)
    with serving() as other:
        other.give("/a/there.safetensors", BODY)
        for target in (
            f"{other.url}/a/there.safetensors",
            f"http://127.0.0.1:{web.port}@evil.example/a/v",
            "/b/there.safetensors",
            "../b/there.safetensors",
            "/a/%2e%2e/b/there.safetensors",
        ):
            web.redirect("/a/v.safetensors", target)
            with pytest.raises((SourceNotAllowed, SourceFailed), match="redirects to"):
                get(web, tmp_path / "u", allowed=allowed)
        assert other.requests == []
        assert not (tmp_path / "u").exists()
        web.redirect("/a/v.safetensors", f"{other.url}/a/there.safetensors")
        get(web, tmp_path / "u")  # a person's own command line


def test_a_token_is_not_taken_to_another_host(web: WebServer) -> None:
    """The one that redirects may be trusted, the other is not."""
    with serving() as other, Web(headers={"authorization": "Bearer secret"}) as client:
        other.give("/x", b"y")
        web.redirect("/x", f"{other.url}/x")
        assert client.document(f"{web.url}/x") == b"y"
        assert web.requests[0][1]["authorization"] == "Bearer secret"
        assert "authorization" not in other.requests[0][1]
