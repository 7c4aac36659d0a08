"""Turns the engine's bytes into the client's: the model's name back, the loadout in. Pure.

The bytes are never parsed and written again: what the engine said stays as it said it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from outfitter.control.surface import MODEL_HOLDERS, Dialect
from outfitter.engine.regular import RegularEvents, head_of
from outfitter.errors import (
    REFUSALS,
    ApiError,
    anthropic_type,
    engine_died,
    engine_refused,
    type_for_status,
)

_MODEL = re.compile(rb'"model"\s*:\s*"(?:[^"\\]|\\.)*"')
_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]]')
_ENGINE_NAME = re.compile(r"tv:[0-9a-f]{64}")
_TYPE_ERROR = re.compile(rb'"type"\s*:\s*"error"')
_OPENING, _CLOSING = (b"{", b"["), (b"}", b"]")
_MAX_KEY = 32
_CORE_DIED = "EngineCore encountered an issue"
_SOCKET = re.compile(r"(?:/[\w.+-]+)+/engine\.sock\b")


@dataclass(frozen=True)
class Identity:
    """What a client is to see: the model name it sent, and the loadout that served it."""

    model: str
    loadout: str = "base"
    """The value of the `x-outfitter-loadout` header."""
    task_vectors: dict[str, object] | None = None
    """The object for the body; None when neither the client nor its model has task vectors."""
    dialect: Dialect = Dialect.OPENAI
    saved_model: str | None = None
    """The saved loadout that is the model, as `acme/support-bot@3`; None for the base."""
    experiment: Mapping[str, object] | None = None
    """The object for the body that says which variant serves; None where no experiment does."""

    def scrub(self, text: str) -> str:
        """`text` without the engine's internal names."""
        return _SOCKET.sub("the engine", _ENGINE_NAME.sub(lambda _: self.model, text))

    def complete(self, body: bytes) -> bytes:
        """A whole JSON object of the engine, as the client gets it."""
        return self.describe(self.rename(body))

    def rename(self, body: bytes) -> bytes:
        """Put the client's model name where an answer or event has the engine's: at its top level.

        In a dialect of events also in the object that an event carries.
        """
        holders = MODEL_HOLDERS[self.dialect]
        for match in _MODEL.finditer(body):
            keys = _keys(body, match.start())
            if keys == () or (keys is not None and len(keys) == 1 and keys[0] in holders):
                name = b'"model":' + json.dumps(self.model).encode()
                return body[: match.start()] + name + body[match.end() :]
        return body

    def describe(self, body: bytes) -> bytes:
        """Append the `task_vectors` and `experiment` objects to a JSON object."""
        told = {"task_vectors": self.task_vectors, "experiment": self.experiment}
        given = {name: fields for name, fields in told.items() if fields is not None}
        if not given:
            return body
        head, brace, tail = body.rpartition(b"}")
        comma = b"" if head.strip() in (b"{", b"") else b","
        members = json.dumps(given, separators=(",", ":")).encode()[1:-1]
        return head + comma + members + brace + tail


@dataclass
class StreamRewriter:
    """Rewrites server-sent events, whatever way the network cut them."""

    identity: Identity
    has_described: bool = False
    _rest: list[bytes] = field(default_factory=list)
    _regular: RegularEvents | None = None

    def feed(self, chunk: bytes) -> bytes:
        """What `chunk` completes: rewritten lines, or whole events where events have names.

        So a stream that breaks off never leaves a name without data behind.
        """
        self._rest.append(chunk)
        if b"\n" not in chunk:
            return b""
        end = b"\n" if self.identity.dialect is Dialect.OPENAI else b"\n\n"
        lines = b"".join(self._rest)
        stop = lines.rfind(end) + len(end)
        if stop < len(end):
            self._rest = [lines]
            return b""
        self._rest = [lines[stop:]] if stop < len(lines) else []
        block = lines[:stop]
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
        if self._is_error(line):
            error = translate_error(500, line[5:], self.identity)
            return b"data: " + json.dumps(event_body(error, self.identity.dialect)).encode()
        original, line = line, self.identity.rename(line)
        if not self.has_described:
            self.has_described = True
            if (head := head_of(original)) is not None:
                self._regular = RegularEvents(head, self.identity.rename(head))
            line = self.identity.describe(line)
        return line

    def _is_error(self, line: bytes) -> bool:
        """Whether the data of an event says that the stream has failed."""
        if line[5:].lstrip().startswith(b'{"error"'):
            return True
        if self.identity.dialect is Dialect.OPENAI or not _TYPE_ERROR.search(line):
            return False
        try:
            fields: object = json.loads(line[5:])
        except (ValueError, RecursionError):
            return False
        return isinstance(fields, dict) and fields.get("type") == "error"


def event_body(error: ApiError, dialect: Dialect) -> dict[str, object]:
    """An error as the clients of a dialect read it from an event's data."""
    if dialect is Dialect.OPENAI:
        return error.body
    fields = {"code": error.code, "message": error.message, "param": error.param}
    if dialect is Dialect.ANTHROPIC:
        return {"type": "error", "error": {**fields, "type": anthropic_type(error.status)}}
    return {"type": "error", **fields, "error": {**fields, "type": error.type}}


def stream_error(error: ApiError, dialect: Dialect = Dialect.OPENAI) -> bytes:
    """A last server-sent event that says why the stream ends here."""
    before = b"\n\n" if dialect is Dialect.OPENAI else b"event: error\n"
    body = json.dumps(event_body(error, dialect)).encode()
    return before + b"data: " + body + b"\n\n"


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
    if status in REFUSALS:
        return engine_refused(status, message)
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


def _keys(body: bytes, position: int) -> tuple[str, ...] | None:
    """The keys of the objects around a key at `position`, without the outermost.

    None inside a string, a list, or outside of any object.
    """
    path: list[str] = []
    key = ""
    for token in _STRUCTURE.finditer(body):
        if token.start() >= position:
            return tuple(path[1:]) if path and "" not in path[1:] else None
        if token.end() > position:
            return None
        if token[0] in _OPENING:
            path.append(key if token[0] == b"{" else "")
        elif token[0] in _CLOSING and path:
            path.pop()
        key = _key(token[0]) if token[0][:1] == b'"' else ""
    return None


def _key(token: bytes) -> str:
    return token[1:-1].decode(errors="replace") if len(token) < _MAX_KEY else ""
