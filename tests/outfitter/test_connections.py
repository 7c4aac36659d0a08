"""Connections are bounded: in what they send, how slowly they do, and what they do not read."""

import contextlib
import datetime
import ipaddress
import json
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from outfitter import protocol
from outfitter.commands.listener import server_config
from outfitter.config import InvalidConfig
from outfitter.protocol import MAX_HEAD_BYTES
from tests.outfitter.harness import Running, make_config, running, wait_for
from tests.outfitter.test_completions import echo
from tests.outfitter.test_logs import Log, _restored  # noqa: F401  puts logging back

FLOOD = {"model": "base-model", "prompt": "flood", "stream": True}
MAX_BEHIND = 24 * 2**20
"""Bytes between an engine and a client that reads nothing: buffers of the system, for the most."""


@contextlib.contextmanager
def connected(url: str, receive_bytes: int | None = None) -> Iterator[socket.socket]:
    where = urlsplit(url)
    with socket.socket() as end:
        if receive_bytes is not None:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        end.settimeout(10)
        end.connect((where.hostname, where.port))
        yield end


def read_all(end: socket.socket) -> bytes:
    """Until the other end closes."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := end.recv(2**16):
            parts.append(part)
    return b"".join(parts)


def sent(url: str, content: bytes) -> tuple[int, dict]:
    """Status and error of what came back for some bytes."""
    with connected(url) as end:
        with contextlib.suppress(ConnectionError):
            end.sendall(content)
        answer = read_all(end)
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def post(body: dict) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


CHUNKED = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


def test_what_follows_a_body_is_bounded(gateway: Running) -> None:
    """Headers after the last chunk are kept by nobody beyond the bound."""
    status, error = sent(gateway.url, CHUNKED + b"0\r\nx: " + b"y" * 10 * MAX_HEAD_BYTES)
    assert (status, error["code"]) == (431, "headers_too_large")


def test_many_headers_and_a_long_body_pass(client: httpx.Client) -> None:
    """What is within the bounds is served, however often on one connection."""
    headers = {f"x-{number}": "y" * 400 for number in range(60)}
    for _ in range(3):
        body = {"model": "base-model", "prompt": "z" * 60_000}
        assert client.post("/v1/completions", json=body, headers=headers).status_code == 200


@pytest.mark.parametrize("more", [b"\r\n", b"GET / HTTP/1.1\r\nx: "])
def test_what_follows_a_request_does_not_break_its_answer(
    gateway: Running, monkeypatch: pytest.MonkeyPatch, more: bytes
) -> None:
    """A stray line end, or a further request that is slow to come."""
    monkeypatch.setattr(protocol, "HEAD_S", 0.2)
    with connected(gateway.url) as end:
        end.sendall(post({"model": "base-model", "prompt": "slowly", "stream": True}))
        time.sleep(0.1)
        end.sendall(more)
        answer = read_all(end)
    stream, _, rest = answer.partition(b"data: [DONE]\n\n\r\n")
    assert stream.startswith(b"HTTP/1.1 200")
    assert stream.count(b"data: {") == 3
    assert rest.startswith(b"0\r\n\r\nHTTP/1.1 408")


def flooded(client: httpx.Client) -> int:
    return echo(client)["flooded"]


def test_a_client_that_does_not_read_stops_the_engine(tmp_path: Path) -> None:
    """Nothing piles up between them; and the stream goes on when it reads again."""
    with running(make_config(tmp_path)) as gateway, gateway.client as client:
        gateway.wait_ready()
        with connected(gateway.url, receive_bytes=2**14) as end:
            end.sendall(post(FLOOD))
            wait_for(lambda: flooded(client) > 0)
            before = -1
            while (now := flooded(client)) != before:
                assert now < MAX_BEHIND
                before = now
                time.sleep(0.5)
            for _ in range(1000):
                assert end.recv(2**16)
            wait_for(lambda: flooded(client) > before)


def test_a_client_that_takes_nothing_is_cut(tmp_path: Path) -> None:
    """Its request ends in the engine as if it had left; others are not touched."""
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        pytest.skip("only Linux ends such connections")
    with running(make_config(tmp_path, stall_seconds=1)) as gateway, gateway.client as client:
        gateway.wait_ready()
        outcomes: list = []
        gateway.inner.observers.append(outcomes.append)
        with connected(gateway.url, receive_bytes=2**14) as end:
            end.sendall(post(FLOOD))
            wait_for(lambda: [told.status for told in outcomes if told.is_stream] == [499])
        wait_for(lambda: echo(client)["aborted"] == 1)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """One that is signed by itself, for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "outfitter")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (tmp_path / "cert.pem").write_bytes(made.public_bytes(pem))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return tmp_path / "cert.pem", tmp_path / "key.pem"


def test_tls_is_served(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """A stream over it is what it is without."""
    chain, key = certificate
    config = make_config(tmp_path, ssl_certfile=chain, ssl_keyfile=key)
    with running(config) as gateway:
        assert gateway.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(chain))
        with httpx.Client(base_url=gateway.url, verify=trusted) as client:
            wait_for(lambda: client.get("/health/ready").status_code == 200)
            body = {"model": "base-model", "prompt": "p", "stream": True}
            assert client.post("/v1/completions", json=body).text.endswith("data: [DONE]\n\n")


def test_a_certificate_that_cannot_be_used_is_told(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    """Before anything is served."""
    _, key = certificate
    for wrong in (tmp_path / "nowhere.pem", key):
        config = make_config(tmp_path, ssl_certfile=wrong, ssl_keyfile=key)
        with pytest.raises(InvalidConfig, match="unsupported --ssl-certfile"):
            server_config(config, None)


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"ssl_certfile": Path("c")}, "--ssl-certfile 'c'; it needs --ssl-keyfile"),
        ({"ssl_keyfile": Path("k")}, "--ssl-keyfile 'k'; it needs --ssl-certfile"),
        ({"stall_seconds": 0}, "--stall-seconds 0"),
        ({"forwarded_allow_ips": "10.0.0.0/8, proxy"}, "--forwarded-allow-ips ' proxy'"),
        ({"log_format": "xml"}, "--log-format 'xml'; choose text, json"),
    ],
)
def test_a_wrong_setting_is_refused(tmp_path: Path, settings: dict, option: str) -> None:
    """By name, with its value."""
    with pytest.raises(InvalidConfig, match=option):
        make_config(tmp_path, **settings)


@pytest.mark.parametrize(
    ("settings", "client_address"),
    [
        ({}, "127.0.0.1"),
        ({"proxy_headers": True}, "203.0.113.9"),
        ({"proxy_headers": True, "forwarded_allow_ips": "10.0.0.0/8"}, "127.0.0.1"),
    ],
)
def test_a_proxy_is_believed_where_it_is_named(
    tmp_path: Path, settings: dict, client_address: str
) -> None:
    """What it says of its client stands in the log."""
    with running(make_config(tmp_path, **settings)) as gateway, gateway.client as client:
        log = Log("json")
        client.get("/v1/models", headers={"x-forwarded-for": "203.0.113.9"})
        assert log.last("outfitter.access")["client"] == client_address


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"no http at all\r\n\r\n", 400, "invalid_http"),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414, "uri_too_long"),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 40_000 + b"\r\n\r\n", 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 2 * MAX_HEAD_BYTES, 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nx: ", 408, "headers_too_slow"),
    ],
)
def test_a_head_that_is_refused_is_counted_and_logged(
    gateway: Running,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    status: int,
    code: str,
) -> None:
    """With the address that it came from, and without its text."""
    monkeypatch.setattr(protocol, "HEAD_S", 0.2 if status == 408 else protocol.HEAD_S)
    log = Log("json")

    def counted() -> float:
        samples = gateway.inner.metrics.registry
        labels = {"route": "(none)", "status": "4xx"}
        return samples.get_sample_value("outfitter_http_responses_total", labels) or 0.0

    before = counted()
    assert sent(gateway.url, content)[1]["code"] == code
    wait_for(lambda: counted() == before + 1)
    wait_for(lambda: any(r.get("code") == code for r in log.records))
    [told] = [r for r in log.records if r.get("code") == code]
    assert (told["client"], told["route"], told["status"]) == ("127.0.0.1", "(none)", status)
    assert "yyyy" not in log.text
    assert "xxxx" not in log.text
