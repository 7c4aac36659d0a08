"""A cheap client of streams: raw sockets that count what ends an event. One JSON line in and out.

    python -m tests.benchmarks.sse_client '{"measure": "latency", "port": 8000, …}'

It runs in a process of its own and parses no event, so that it is never what is measured.
"""

import asyncio
import json
import sys
import time
from typing import Any

import uvloop

DONE, END = b"data: [DONE]", b"0\r\n\r\n"
TIMEOUT_S = 120.0


class Connection(asyncio.Protocol):
    """A kept-alive connection that asks one thing at a time."""

    def __init__(self) -> None:
        self.num_events = 0
        self.first: float | None = None
        self._tail = b""
        self._length: int | None = None
        self._head: bytes | None = b""
        self._whole: asyncio.Future[float] | None = None
        self._begun: asyncio.Future[float] | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        for waiter in (self._whole, self._begun):
            if waiter is not None and not waiter.done():
                waiter.set_exception(ConnectionError("the server hung up"))

    def ask(self, request: bytes) -> "asyncio.Future[float]":
        """Send a request; the future is the time at which its answer was whole."""
        loop = asyncio.get_running_loop()
        self._tail, self._head, self._length, self.first = b"", b"", None, None
        self._whole, self._begun = loop.create_future(), loop.create_future()
        self._transport.write(request)
        return self._whole

    async def begun(self) -> None:
        """Returns when the first event has come."""
        assert self._begun is not None
        await self._begun

    def close(self) -> None:
        """Leave, whatever is under way."""
        self._whole = self._begun = None
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        if self._whole is None:
            return
        if self._head is not None:
            data = self._read_head(data)
        if not data:
            return
        if self._length is not None:
            self._length -= len(data)
            self._finish(is_whole=self._length <= 0)
            return
        if self.first is None and b"data:" in data:
            self.first = time.perf_counter()
            if self._begun is not None and not self._begun.done():
                self._begun.set_result(self.first)
        self.num_events += data.count(b"\n\n") + (self._tail[-1:] == data[:1] == b"\n")
        self._tail = (self._tail + data[-32:])[-32:]
        self._finish(is_whole=self._tail.endswith(END))

    def _read_head(self, data: bytes) -> bytes:
        """What follows the head, once that is complete; raises RuntimeError unless it says 200."""
        assert self._head is not None
        head, blank, rest = (self._head + data).partition(b"\r\n\r\n")
        if not blank:
            self._head = head
            return b""
        self._head = None
        if b" 200 " not in head[:16]:
            raise RuntimeError(f"{head!r} {rest[:500]!r}")
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                self._length = int(line[15:])
        return rest

    def _finish(self, *, is_whole: bool) -> None:
        if is_whole and self._whole is not None and not self._whole.done():
            self._whole.set_result(time.perf_counter())


def request_of(fields: dict[str, Any], *, stream: bool, **asked: object) -> bytes:
    """The bytes of a chat request that tells the stand-in what to do, unless `fields` has more."""
    told = " ".join(f"{key}={value}" for key, value in asked.items())
    messages = [{"role": "user", "content": told}]
    body = json.dumps({"messages": messages, **fields, "stream": stream}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def connect(port: int | None, uds: str | None = None) -> Connection:
    """A connection to a server on this machine."""
    loop = asyncio.get_running_loop()
    if uds is not None:
        return (await loop.create_unix_connection(Connection, uds))[1]
    return (await loop.create_connection(Connection, "127.0.0.1", port))[1]


async def latency(port: int, fields: dict[str, Any], streams: int, gap_ms: int, probes: int) -> Any:
    """Seconds of short requests and to first events, while `streams` − 1 others flow.

    The others bring an event every `gap_ms`; probes are sent one after another.
    """
    others = [await connect(port) for _ in range(streams - 1)]
    paced = request_of(fields, stream=True, events=10**4, gap_ms=gap_ms)
    for other in others:
        other.ask(paced)
        await other.begun()
    probe = await connect(port)
    short = request_of(fields, stream=False, events=1)
    stream = request_of(fields, stream=True, events=2)
    times: dict[str, list[float]] = {"short": [], "first_event": []}
    for _ in range(probes):
        begin = time.perf_counter()
        times["short"].append(await probe.ask(short) - begin)
        begin = time.perf_counter()
        await probe.ask(stream)
        assert probe.first is not None
        times["first_event"].append(probe.first - begin)
    for connection in (*others, probe):
        connection.close()
    return times


async def throughput(
    fields: dict[str, Any],
    streams: int,
    port: int | None = None,
    uds: str | None = None,
    **asked: int,
) -> Any:
    """Events and seconds of `streams` streams at once, after their connections are made."""
    connections = [await connect(port, uds) for _ in range(streams)]
    request = request_of(fields, stream=True, **asked)
    begin = time.perf_counter()
    await asyncio.gather(*(connection.ask(request) for connection in connections))
    seconds = time.perf_counter() - begin
    counted = sum(connection.num_events for connection in connections)
    for connection in connections:
        connection.close()
    return {"events": streams * asked["events"], "counted": counted, "seconds": seconds}


async def idle(port: int, fields: dict[str, Any], streams: int) -> Any:
    """Hold `streams` streams that have begun, until a line is read; says when they have."""
    connections = [await connect(port) for _ in range(streams)]
    request = request_of(fields, stream=True, events=2, gap_ms=10**6)
    for connection in connections:
        connection.ask(request)
        await connection.begun()
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for connection in connections:
        connection.close()
    return {"streams": streams}


MEASURES = {"latency": latency, "throughput": throughput, "idle": idle}


async def main() -> None:
    """Do what the argument says and print what was seen."""
    asked = json.loads(sys.argv[1])
    measure = MEASURES[asked.pop("measure")]
    result = await asyncio.wait_for(measure(**asked), TIMEOUT_S)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
