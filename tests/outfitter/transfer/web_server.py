"""Small HTTP servers for tests: one that answers as told, lies included, and a cutting proxy."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class WebServer:
    """A server whose answers a test sets. requests: what was asked, with the headers."""

    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def give(self, path: str, body: bytes, **options: object) -> None:
        """Answer `path` with `body`, by range too."""
        self.answers[path] = lambda request: send_file(request, body, **options)

    def redirect(self, path: str, to: str) -> None:
        self.answers[path] = lambda request: send(request, 302, b"", {"location": to})


def send(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict) -> None:
    request.send_response(status)
    for name, value in {"content-length": str(len(body)), **headers}.items():
        if value is not None:
            request.send_header(name, value)
    request.end_headers()
    with contextlib.suppress(ConnectionError):
        request.wfile.write(body)


def send_file(
    request: BaseHTTPRequestHandler, body: bytes, etag: str = '"one"', cut: list[int] | None = None
) -> None:
    """`body` with an ETag, or its range; cut: after so many bytes, for one answer after another."""
    given = request.headers.get("range")
    start = 0
    if given and request.headers.get("if-range") == etag:
        start = int(given.removeprefix("bytes=").partition("-")[0])
    headers = {"etag": etag, "content-length": str(len(body) - start)}
    if start:
        headers["content-range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
    part = body[start:]
    if cut:
        part = part[: cut.pop(0)]
        request.close_connection = True
    send(request, 206 if start else 200, part, headers)


@contextlib.contextmanager
def serving() -> Iterator[WebServer]:
    """A server on a port of its own."""
    found = WebServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
            answer = found.answers.get(self.path) or found.answers.get(self.path.partition("?")[0])
            if answer is None:
                send(self, 404, b"{}", {})
            else:
                answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # clients that leave are no news
    server.daemon_threads = True
    found.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class CuttingProxy:
    """Forwards to `target`; cuts each connection after so many bytes, while `cuts` has some.

    upwards: counts what the client sends, else what it is sent. sent, received: bytes of all
    clients.
    """

    target: int
    cuts: list[int] = field(default_factory=list)
    upwards: bool = False
    port: int = 0
    connections: int = 0
    sent: int = 0
    received: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def handle(self, client: socket.socket) -> None:
        self.connections += 1
        left = self.cuts.pop(0) if self.cuts else None
        with client, socket.create_connection(("127.0.0.1", self.target)) as server:
            up = threading.Thread(
                target=self.pump, args=(client, server, left if self.upwards else None, True)
            )
            up.start()
            self.pump(server, client, None if self.upwards else left)
            up.join()

    def pump(
        self, source: socket.socket, target: socket.socket, left: int | None, is_up: bool = False
    ) -> None:
        """Forward until the end, or until `left` bytes are through: then both are shut."""
        with contextlib.suppress(OSError):
            while chunk := source.recv(65536 if left is None else min(65536, left)):
                target.sendall(chunk)
                self.sent += len(chunk) * is_up
                self.received += len(chunk) * (not is_up)
                if left is not None:
                    left -= len(chunk)
                    if left <= 0:
                        break
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def cutting(target: str, cuts: list[int], *, upwards: bool = False) -> Iterator[CuttingProxy]:
    """A proxy in front of the server at `target`."""
    proxy = CuttingProxy(int(target.rpartition(":")[2]), cuts, upwards)
    listener = socket.create_server(("127.0.0.1", 0))
    proxy.port = listener.getsockname()[1]

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=proxy.handle, args=(client,), daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield proxy
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
