"""Turns the engine's bytes into the client's: the model's name back, the loadout in. Pure.

The bytes are never parsed and written again: what the engine said stays as it said it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from outfitter.engine.regular import RegularEvents, head_of
from outfitter.errors import ApiError, engine_died, type_for_status

_MODEL = re.compile(rb'"model"\s*:\s*"(?:[^"\\]|\\.)*"')
_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]]')
_ENGINE_NAME = re.compile(r"tv:[0-9a-f]{64}")
_CORE_DIED = "EngineCore encountered an issue"
_SOCKET = re.compile(r"(?:/[\w.+-]+)+/engine\.sock\b")


@dataclass(frozen=True)
class Identity:
    """What a client is to see: the model name it sent, and the loadout that served it."""

    model: str
    loadout: str = "base"
    """The value of the `x-outfitter-loadout` header."""
    task_vectors: dict[str, object] | None = None
    """The object for the body; None when the client did not ask for task vectors."""

    def scrub(self, text: str) -> str:
        """`text` without the engine's internal names."""
        return _SOCKET.sub("the engine", _ENGINE_NAME.sub(lambda _: self.model, text))

    def complete(self, body: bytes) -> bytes:
        """A whole JSON object of the engine, as the client gets it."""
        return self.describe(self.rename(body))

    def rename(self, body: bytes) -> bytes:
        """Put the client's model name in the top-level `model` of a JSON object."""
        for match in _MODEL.finditer(body):
            if _is_top_level(body, match.start()):
                name = b'"model":' + json.dumps(self.model).encode()
                return body[: match.start()] + name + body[match.end() :]
        return body

    def describe(self, body: bytes) -> bytes:
        """Append the `task_vectors` object to a JSON object."""
        if self.task_vectors is None:
            return body
        head, brace, tail = body.rpartition(b"}")
        comma = b"" if head.strip() in (b"{", b"") else b","
        fields = json.dumps(self.task_vectors, separators=(",", ":")).encode()
        return head + comma + b'"task_vectors":' + fields + brace + tail


@dataclass
class StreamRewriter:
    """Rewrites server-sent events line by line, whatever way the network cut them."""

    identity: Identity
    has_described: bool = False
    _rest: list[bytes] = field(default_factory=list)
    _regular: RegularEvents | None = None

    def feed(self, chunk: bytes) -> bytes:
        """The rewritten lines that `chunk` completes."""
        self._rest.append(chunk)
        if b"\n" not in chunk:
            return b""
        lines = b"".join(self._rest)
        end = lines.rfind(b"\n") + 1
        self._rest = [lines[end:]] if end < len(lines) else []
        block = lines[:end]
        if self._regular is not None and (renamed := self._regular.rename(block)) is not None:
            return renamed
        return b"\n".join(map(self._rewrite, block.split(b"\n")))

    def finish(self) -> bytes:
        """What is left when the stream ends without a newline."""
        rest, self._rest = b"".join(self._rest), []
        return self._rewrite(rest) if rest else b""

    def _rewrite(self, line: bytes) -> bytes:
        if not line.startswith(b"data:") or not line[5:].lstrip().startswith(b"{"):
            return line
        if line[5:].lstrip().startswith(b'{"error"'):
            error = translate_error(500, line[5:], self.identity)
            return b"data: " + json.dumps(error.body).encode()
        original, line = line, self.identity.rename(line)
        if not self.has_described:
            self.has_described = True
            if (head := head_of(original)) is not None:
                self._regular = RegularEvents(head, self.identity.rename(head))
            line = self.identity.describe(line)
        return line


def stream_error(body: dict[str, object]) -> bytes:
    """A last server-sent event that says why the stream ends here."""
    return b"\n\ndata: " + json.dumps(body).encode() + b"\n\n"


def translate_error(status: int, body: bytes, identity: Identity) -> ApiError:
    """Any error answer of the engine, in OpenAI's shape and without internal names."""
    try:
        fields: object = json.loads(body)
    except (ValueError, RecursionError):
        fields = body.decode(errors="replace")[:2000]
    error = fields.get("error", fields) if isinstance(fields, dict) else fields
    if not isinstance(error, dict):
        error = {"message": error}
    message = identity.scrub(_message(error)) or f"the engine answered with status {status}"
    if message.startswith(_CORE_DIED):
        return engine_died()
    code, param, kind = error.get("code"), error.get("param"), error.get("type")
    return ApiError(
        status,
        message,
        code if isinstance(code, str) else None,
        param.removeprefix("body.") if isinstance(param, str) else None,
        kind if isinstance(kind, str) and kind.endswith("_error") else type_for_status(status),
    )


def _message(error: Mapping[str, object]) -> str:
    message = error.get("message", error.get("detail", error))
    return message if isinstance(message, str) else json.dumps(message)


def _is_top_level(body: bytes, position: int) -> bool:
    """Whether a token at `position` is a key of the outermost object."""
    return _depth(_STRUCTURE.finditer(body, 0), position) == 1


def _depth(tokens: Iterator[re.Match[bytes]], position: int) -> int | None:
    """How deep `position` is nested; None inside a string."""
    depth = 0
    for token in tokens:
        if token.start() >= position:
            return depth
        if token.end() > position:
            return None
        depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1}.get(token[0], 0)
    return depth
