"""Large replies of Redis straight into a buffer, while redis-py would copy each three times.

Only an optimisation: it asks for values whose sizes are known, and stops at the first reply that is
anything else, which redis-py is then asked for again and understands.
"""

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import redis

_AT_ONCE = 2
"""Requests under way, so that the server prepares one value while another arrives."""
_TOLD_EVERY = 512 << 10


def read_values(
    client: redis.Redis,
    commands: Sequence[tuple[str, ...]],
    parts: Sequence[memoryview],
    timeout_s: float,
    arrived: Callable[[int, int], None],
) -> int:
    """Put the reply of `commands[i]` into `parts[i]`; returns how many are complete.

    timeout_s: for each of them. arrived(i, n): the first n bytes of part i are in place. Raises
    redis.RedisError, OSError (TimeoutError), and what `arrived` raises.
    """
    pool = client.connection_pool
    connection: Any = pool.get_connection()
    is_clean = False
    try:
        sock: socket.socket | None = getattr(connection, "_sock", None)  # redis-py has no name
        if sock is None:
            return 0
        waiting = iter(commands)
        for command in _next(waiting, _AT_ONCE):
            connection.send_command(*command)
        for number, part in enumerate(parts):
            deadline = time.monotonic() + timeout_s
            if not _read_exactly(sock, b"$%d\r\n" % part.nbytes):
                return number
            for count in _receive(sock, part, deadline):
                arrived(number, count)
            if not _read_exactly(sock, b"\r\n"):
                return number
            for command in _next(waiting, 1):
                connection.send_command(*command)
        is_clean = True
        return len(parts)
    finally:
        if not is_clean:
            connection.disconnect()
        pool.release(connection)


def _next(waiting: Iterator[tuple[str, ...]], count: int) -> Iterator[tuple[str, ...]]:
    for _, command in zip(range(count), waiting, strict=False):
        yield command


def _read_exactly(sock: socket.socket, expected: bytes) -> bool:
    """Whether these bytes come; stops at the first other one."""
    got = b""
    while got != expected:
        data = sock.recv(len(expected) - len(got))
        got += data
        if not data:
            raise ConnectionError("the server closed the connection")
        if not expected.startswith(got):
            return False
    return True


def _receive(sock: socket.socket, part: memoryview, deadline: float) -> Iterator[int]:
    """Fills the part; yields how much of it is in place, now and then."""
    at = told = 0
    while at < part.nbytes:
        count = sock.recv_into(part[at:])
        if not count:
            raise ConnectionError("the server closed the connection")
        at += count
        if at - told >= _TOLD_EVERY or at == part.nbytes:
            told = at
            yield at
        if time.monotonic() > deadline:
            raise TimeoutError("the value came too slowly")
