"""Connections whose requests never become whole."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from outfitter import protocol
from tests.outfitter.harness import Running


@contextlib.contextmanager
def connected(gateway: Running) -> Iterator[socket.socket]:
    where = urlsplit(gateway.url)
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=20) as found:
        yield found


def answer(connection: socket.socket) -> tuple[int, str]:
    """Status and code of what comes before the other side hangs up."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.mark.parametrize(
    "start", [b"GET /health/live HTTP/1.1\r\nx: ", b"GET /", b"GET / HTTP/1.1\r\n"]
)
def test_a_head_without_an_end_is_refused(gateway: Running, start: bytes) -> None:
    """One header, an address, or many headers: nothing is kept beyond the bound."""
    piece = b"x: y\r\n" * 200 if start.endswith(b"\n") else b"a" * 1200
    with connected(gateway) as connection:
        connection.sendall(start)
        with contextlib.suppress(ConnectionError):
            for _ in range(80):
                connection.sendall(piece)
                time.sleep(0.001)
        assert answer(connection) == (431, "headers_too_large")


@pytest.mark.parametrize("sent", [b"", b"GET /health/live HTTP/1.1\r\n"])
def test_a_head_that_does_not_come_is_given_up(
    gateway: Running, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """Begun or not."""
    monkeypatch.setattr(protocol, "HEAD_S", 0.3)
    with connected(gateway) as connection:
        connection.sendall(sent)
        assert answer(connection) == (408, "headers_too_slow")


def test_a_slow_body_and_an_idle_connection_are_not_slow_heads(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its own patience."""
    monkeypatch.setattr(protocol, "HEAD_S", 0.3)
    with httpx.Client(base_url=gateway.url) as client:
        for _ in range(2):
            assert client.get("/health/live").status_code == 200
            time.sleep(0.5)

        def slow() -> Iterator[bytes]:
            yield b'{"model":"base-model",'
            time.sleep(0.6)
            yield b'"prompt":"x"}'

        assert client.post("/v1/completions", content=slow()).status_code == 200


def test_a_body_as_large_as_many_heads_is_read(client: httpx.Client) -> None:
    """It comes with the head's last bytes."""
    body = {"model": "base-model", "prompt": "x" * 60_000}
    for _ in range(3):
        assert client.post("/v1/completions", json=body).status_code == 200


def test_what_is_no_http_is_told_so(gateway: Running) -> None:
    """In OpenAI's shape."""
    with connected(gateway) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert answer(connection) == (400, "invalid_http")
