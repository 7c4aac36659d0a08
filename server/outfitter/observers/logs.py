"""Log lines, as text or as one JSON object each, that say which request they belong to.

They hold no text of a prompt or an answer.
"""

import json
import logging
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, TextIO

from outfitter.control.outcome import Outcome
from outfitter.control.principal import Principal

ACCESS, CHANGES = "outfitter.access", "outfitter.changes"
REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The request that is being served."""
FIELDS = "fields"
"""The attribute of a record that holds a mapping of what else it says."""

_ENCODER = json.JSONEncoder(default=str)

access = logging.getLogger(ACCESS)
changes = logging.getLogger(CHANGES)


def configure(format_: str, *, access_log: bool, stream: TextIO | None = None) -> None:
    """Let this process log to `stream`, standard error unless given, as `text` or `json`."""
    handler = logging.StreamHandler(stream)
    handler.addFilter(_add_request_id)
    handler.setFormatter(JsonFormatter() if format_ == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("outfitter").setLevel(logging.INFO)
    access.setLevel(logging.INFO if access_log else logging.WARNING)


def request_fields(
    outcome: Outcome | None, principal: Principal | None, told: Mapping[str, object]
) -> dict[str, object]:
    """What is said of a request: `told`, who it was, and what became of it if it was relayed."""
    who = outcome.principal if outcome is not None else principal
    fields = dict(told)
    if who is not None:
        fields |= {"tenant": who.tenant, "key": who.key}
    if outcome is not None:
        fields |= _outcome_fields(outcome)
    return fields


def _outcome_fields(outcome: Outcome) -> dict[str, object]:
    return {
        "status": outcome.status,
        "code": outcome.code,
        "model": outcome.model,
        "saved_model": outcome.saved_model,
        "variant": None if outcome.exposure is None else outcome.exposure.label,
        "loadout": outcome.loadout,
        "stream": outcome.is_stream,
        "first_token_s": _rounded(outcome.first_token_seconds),
        "inter_token_s": _rounded(outcome.inter_token_seconds),
        "prompt_tokens": outcome.prompt_tokens,
        "cached_tokens": outcome.cached_tokens,
        "completion_tokens": outcome.completion_tokens,
    }


class JsonFormatter(logging.Formatter):
    """One line of ASCII JSON for each record."""

    def format(self, record: logging.LogRecord) -> str:
        """`{"time": …, "level": …, "logger": …, "message": …, "request_id": …, …}`."""
        fields: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request_id := getattr(record, "request_id", None)) is not None:
            fields["request_id"] = request_id
        fields |= getattr(record, FIELDS, {})
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return _ENCODER.encode(fields)


class TextFormatter(logging.Formatter):
    """One line for each record, and the traceback of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        """`time level logger [request id] message key=value …`."""
        request_id = getattr(record, "request_id", None)
        parts = [_time(record), record.levelname, record.name]
        parts += [f"[{request_id}]"] if request_id is not None else []
        parts.append(record.getMessage())
        more = getattr(record, FIELDS, {})
        parts += [f"{key}={value}" for key, value in more.items() if value is not None]
        line = "".join(c if c.isprintable() else "?" for c in " ".join(parts))
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _add_request_id(record: logging.LogRecord) -> bool:
    record.request_id = REQUEST_ID.get()
    return True


def _time(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
