"""A span for each request, between the client's and the engine's."""

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from outfitter.config import InvalidConfig
from outfitter.observers.traces import Traces
from outfitter.observers.tracing import open_tracing
from tests.outfitter.harness import Running, make_config, make_vector, push, running, wait_for

CANARY = "canary-5b20aa"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
BODY = {"model": "base-model", "prompt": f"{CANARY} words"}


class Traced:
    """A gateway whose spans stay in memory."""

    def __init__(self, gateway: Running, exporter: InMemorySpanExporter) -> None:
        self.client, self._exporter = gateway.client, exporter

    def span(self) -> ReadableSpan:
        """The one span since the last call."""
        wait_for(lambda: bool(self._exporter.get_finished_spans()))
        [found] = self._exporter.get_finished_spans()
        self._exporter.clear()
        return found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    root = tmp_path_factory.mktemp("traced")
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with running(make_config(root), open_tracing=lambda: Traces(provider)) as gateway:
        gateway.wait_ready()
        with gateway.client as client:
            push(client, make_vector(root / "v"), "skill")
        yield Traced(gateway, exporter)


@pytest.fixture
def traced(shared: Traced) -> Traced:
    shared._exporter.clear()
    return shared


def test_a_stream_is_a_span(traced: Traced) -> None:
    """With what served it, its tokens, and when the first of them came."""
    body = {**BODY, "stream": True, "task_vectors": {"skill": 1}}
    answer = traced.client.post("/v1/completions", json=body, headers=HEADERS)
    span = traced.span()
    assert span.name == "POST /v1/completions"
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
        "outfitter.request_id": answer.headers["x-request-id"],
        "outfitter.tenant": "open",
        "outfitter.status": 200,
        "outfitter.loadout": answer.headers["x-outfitter-loadout"],
        "outfitter.stream": True,
        "outfitter.cached_tokens": 1,
        "gen_ai.request.model": "base-model",
        "gen_ai.usage.input_tokens": 2,
        "gen_ai.usage.output_tokens": 3,
    }
    [event] = span.events
    assert event.name == "first_token"
    assert span.start_time < event.timestamp < span.end_time
    assert CANARY not in span.to_json()


def test_the_engine_s_parent_is_the_gateway_s_span(traced: Traced) -> None:
    """In the client's trace, or in a new one where the client names none or nonsense."""
    for headers in (HEADERS, {}, {"traceparent": "nonsense"}):
        answer = traced.client.post(
            "/v1/completions", json={**BODY, "prompt": "echo"}, headers=headers
        )
        seen = json.loads(answer.json()["choices"][0]["text"])["headers"]
        told = {name.lower(): value for name, value in seen.items()}
        context = traced.span().context
        expected = f"00-{context.trace_id:032x}-{context.span_id:016x}-0"
        assert told["traceparent"].startswith(expected)
        assert told.get("tracestate") == headers.get("tracestate")
        assert (f"{context.trace_id:032x}" == TRACE) == (headers == HEADERS)


@pytest.mark.parametrize(
    ("fields", "status", "is_error"),
    [
        ({"prompt": "text error"}, 500, True),
        ({"prompt": "fail midway", "stream": True}, 500, True),
        ({"task_vectors": {"nobody": 1}}, 404, False),
    ],
)
def test_only_our_own_failures_are_errors(
    traced: Traced, fields: dict, status: int, is_error: bool
) -> None:
    """Also that of a stream whose headers said 200."""
    traced.client.post("/v1/completions", json={**BODY, **fields})
    span = traced.span()
    assert span.attributes["outfitter.status"] == status
    assert (span.status.status_code is StatusCode.ERROR) == is_error


def test_other_routes_are_spans_by_their_pattern(traced: Traced) -> None:
    """But for those that are asked all the time."""
    traced.client.get("/health/live")
    traced.client.get("/metrics")
    traced.client.get("/v1/task_vectors/skill")
    assert traced.span().name == "GET /v1/task_vectors/{reference:path}"


def test_without_a_collector_nothing_is_imported() -> None:
    """Off costs no import."""
    code = (
        "import sys, os; import outfitter.app, outfitter.deps;"
        "from outfitter.observers.tracing import open_tracing;"
        "assert open_tracing({}) is None;"
        "loaded = {'opentelemetry.exporter', 'outfitter.observers.traces'} & sys.modules.keys();"
        "sys.exit(bool(loaded))"  # the client of Redis imports the SDK by itself
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_collector_without_the_sdk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is served."""
    monkeypatch.delattr("outfitter.observers.traces")
    monkeypatch.setitem(sys.modules, "outfitter.observers.traces", None)
    with pytest.raises(InvalidConfig, match=r"OTEL_EXPORTER_OTLP_ENDPOINT.*outfitter\[otel\]"):
        open_tracing({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"})


def test_spans_are_sent_to_the_collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By OTLP over HTTP, the last of them before the gateway has ended."""
    posted: list[tuple[str, bytes]] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    with running(make_config(tmp_path)) as gateway:
        gateway.wait_ready()
        assert httpx.post(f"{gateway.url}/v1/completions", json=BODY).status_code == 200
    server.shutdown()
    assert {path for path, _ in posted} == {"/v1/traces"}
    content = b"".join(body for _, body in posted)
    assert b"POST /v1/completions" in content
    assert b"outfitter.tenant" in content
    assert CANARY.encode() not in content
