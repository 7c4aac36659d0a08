"""A stand-in for vLLM that streams as fast as anybody reads, for the gateway's own cost.

    python -m tests.benchmarks.upstream [--uds PATH] [--port PORT]

No model: a bare protocol on uvloop answers `/v1/chat/completions` with bytes that were built
before, framed as vLLM 0.32 frames them (one event, one HTTP chunk). What to do stands in the first
message, as `events=N burst=K gap_ms=G`: N events, K of them in a write, a pause of G ms after each
write. Without a pause the next write follows in the next turn of the loop, unless the reader lags.
"""

import argparse
import asyncio
import json
from functools import lru_cache
from typing import Any

import uvloop

WORDS = (" the", " of", " coat", ",", " and", " warm", " in", " winter")
PROPERTIES = ("model", "messages", "stream", "stream_options", "max_tokens", "temperature")
CREATED = 1795456394
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


class Engine(asyncio.Protocol):
    """One connection: a request at a time, kept alive."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._bursts: list[bytes] = []
        self._next = 0
        self._gap = 0.0
        self._is_paused = False
        self._waits = False

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, blank, body = self._received.partition(b"\r\n\r\n")
        if not blank:
            return
        length = _content_length(head)
        if len(body) >= length:
            self._received = body[length:]
            self._answer(head.split(b" ", 2)[1], body[:length])

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        if self._waits:
            self._waits = False
            self._write()

    def connection_lost(self, exc: Exception | None) -> None:
        self._bursts = []

    def _answer(self, path: bytes, body: bytes) -> None:
        if path != b"/v1/chat/completions":
            self._transport.write(_plain(_described(path)))
            return
        fields = json.loads(body)
        asked = dict(part.split("=") for part in fields["messages"][0]["content"].split())
        if not fields.get("stream"):
            self._transport.write(_whole(fields["model"]))
            return
        has_usage = bool((fields.get("stream_options") or {}).get("include_usage"))
        events, burst = int(asked["events"]), int(asked.get("burst", 1))
        self._bursts = _bursts(fields["model"], events, burst, has_usage)
        self._gap, self._next = float(asked.get("gap_ms", 0)) / 1000, 0
        self._transport.write(STREAM_HEAD)
        self._write()

    def _write(self) -> None:
        if self._is_paused:
            self._waits = True
        elif self._next < len(self._bursts):
            self._transport.write(self._bursts[self._next])
            self._next += 1
            if self._gap and self._next < len(self._bursts):
                self._loop.call_later(self._gap, self._write)
            else:
                self._loop.call_soon(self._write)


@lru_cache(maxsize=64)
def _bursts(model: str, num_events: int, burst: int, has_usage: bool) -> list[bytes]:
    """What is written of a stream, `burst` events at a time; the last holds the end."""
    deltas: list[dict[str, object]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": WORDS[n % len(WORDS)]} for n in range(num_events - 1)]
    ends = [None] * (num_events - 1) + ["length"]
    choices = [_choice(delta, end) for delta, end in zip(deltas, ends, strict=True)]
    chunks = [_chunked(_event(model, [choice])) for choice in choices]
    told = {"usage": _usage(num_events), "system_fingerprint": "stand-in"}
    end = [_chunked(_event(model, [], **told))] if has_usage else []
    groups = [b"".join(chunks[n : n + burst]) for n in range(0, num_events, burst)]
    return [
        *groups[:-1],
        b"".join([*groups[-1:], *end, _chunked(b"data: [DONE]\n\n"), _chunked(b"")]),
    ]


def _choice(delta: dict[str, object], end: str | None) -> dict[str, object]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": end, "token_ids": None}


def _event(model: str, choices: list[dict[str, object]], **more: object) -> bytes:
    head = {"id": "chatcmpl-b2c5fcc3717e7ef8", "object": "chat.completion.chunk"}
    fields = {**head, "created": CREATED, "model": model, "choices": choices, **more}
    return b"data: " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


def _usage(completion: int) -> dict[str, int]:
    return {"prompt_tokens": 9, "total_tokens": 9 + completion, "completion_tokens": completion}


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@lru_cache(maxsize=64)
def _whole(model: str) -> bytes:
    message = {"role": "assistant", "content": " the coat", "tool_calls": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    head = {"id": "chatcmpl-b2c5fcc3717e7ef8", "object": "chat.completion", "created": CREATED}
    fields = {**head, "model": model, "choices": [choice], "usage": _usage(2)}
    return _plain(json.dumps(fields, separators=(",", ":")).encode())


def _described(path: bytes) -> bytes:
    """What else is asked at start: the schema, health, the models; of all others nothing."""
    if path == b"/openapi.json":
        properties = {name: {} for name in PROPERTIES}
        return json.dumps(
            {"components": {"schemas": {"ChatCompletionRequest": {"properties": properties}}}}
        ).encode()
    if path == b"/v1/models":
        model = {"id": "base-model", "object": "model", "created": CREATED, "owned_by": "vllm"}
        return json.dumps({"object": "list", "data": [model]}).encode()
    return b"{}"


def _plain(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


async def serve(uds: str | None, port: int | None) -> None:
    """Answer on a unix socket, on a TCP port of this machine, or on both."""
    loop = asyncio.get_running_loop()
    servers = []  # a server that nobody holds stops accepting when it is collected
    if uds:
        servers.append(await loop.create_unix_server(Engine, uds, backlog=2048))
    if port:
        servers.append(await loop.create_server(Engine, "127.0.0.1", port, backlog=2048))
    await asyncio.gather(*(server.serve_forever() for server in servers))


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uds")
    parser.add_argument("--port", type=int)
    options = parser.parse_args()
    uvloop.run(serve(options.uds, options.port))


if __name__ == "__main__":
    main()
