"""Something in front of a server: it ends TLS, or passes answers on slowly."""

import datetime
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def self_signed(folder: Path) -> Path:
    """A certificate of localhost and its key in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    today = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "localhost.pem"
    encoding = serialization.Encoding.PEM
    secret = key.private_bytes(
        encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(certificate.public_bytes(encoding) + secret)
    return path


@contextmanager
def tls_in_front_of(port: int, certificate: Path) -> Iterator[int]:
    """The port of a TLS server that passes everything on to `port`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with _relay(port, lambda sock: context.wrap_socket(sock, server_side=True), 0.0) as front:
        yield front


@contextmanager
def slow_in_front_of(port: int) -> Iterator[int]:
    """The port of a server that passes answers on 16 KiB at a time, every 0.1 s."""
    with _relay(port, lambda sock: sock, 0.1) as front:
        yield front


@contextmanager
def _relay(
    port: int, accept: Callable[[socket.socket], socket.socket], pause_s: float
) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with suppress(OSError):
                        _join(
                            accept(client), socket.create_connection(("127.0.0.1", port)), pause_s
                        )

        threading.Thread(target=serve, daemon=True).start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)


def _join(client: socket.socket, server: socket.socket, pause_s: float) -> None:
    for source, target, wait in ((client, server, 0.0), (server, client, pause_s)):
        threading.Thread(target=_copy, args=(source, target, wait), daemon=True).start()


def _copy(source: socket.socket, target: socket.socket, pause_s: float) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 14):
            target.sendall(data)
            time.sleep(pause_s)
    for sock in (source, target):
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
