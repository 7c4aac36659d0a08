"""What the engine is asked, whichever loadout is to serve it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fastapi import Request

from outfitter.control.fields import TASK_VECTORS
from outfitter.control.surface import Route
from outfitter.engine.hidden import with_usage
from outfitter.routes.relayed import EngineRequest
from taskvectors.spec import Loadout

LOADOUT_HEADER = "x-taskvectors-loadout"
REQUEST_ID = "x-request-id"
_PASSED_HEADERS = ("traceparent", "tracestate")
_USAGE_PATHS = ("/v1/chat/completions", "/v1/completions")
"""Of the engine, whose streams tell their usage where they are asked for it."""


@dataclass(frozen=True)
class Question:
    """A request that was checked. fields: its body. base: the name that the engine has for it.

    headers: for the engine, and with_loadout those that go beside that of a loadout.
    """

    route: Route
    fields: Mapping[str, object]
    base: str
    headers: Mapping[str, str]
    with_loadout: Mapping[str, str]

    @classmethod
    def of(
        cls, route: Route, request: Request, fields: Mapping[str, object], base: str
    ) -> "Question":
        """That of a request whose ticket is not known yet."""
        passed = {key: request.headers[key] for key in _PASSED_HEADERS if key in request.headers}
        return cls(route, fields, base, {**passed, REQUEST_ID: request.state.request_id}, {})

    def named(self, request_id: str) -> "Question":
        """The same under another id."""
        return replace(self, headers={**self.headers, REQUEST_ID: request_id})

    def admitted(self, engine_headers: Mapping[str, str]) -> "Question":
        """The same with the headers of its ticket."""
        return replace(self, with_loadout=engine_headers)

    def served_by(self, loadout: Loadout) -> EngineRequest:
        """As the engine gets it; what depends on the tokenizer only is served by the base."""
        route, fields, hides_usage = self.route, self.fields, False
        if route.target in _USAGE_PATHS:
            fields, hides_usage = with_usage(fields)
        if route.is_tokens or loadout.is_base:
            return EngineRequest(route.target, _body(fields, self.base), self.headers, hides_usage)
        own = {LOADOUT_HEADER: loadout.canonical, **self.with_loadout}
        body = _body(fields, loadout.engine_name)
        return EngineRequest(route.target, body, {**self.headers, **own}, hides_usage)


def _body(fields: Mapping[str, object], model: str) -> bytes:
    told = {key: value for key, value in fields.items() if key != TASK_VECTORS}
    told["model"] = model
    return json.dumps(told, separators=(",", ":")).encode()
