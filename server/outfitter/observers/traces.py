"""A span for each request, which the engine's own spans hang on. Imports OpenTelemetry's SDK."""

import time
from collections.abc import Mapping
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Scope

from outfitter.control.outcome import Outcome
from outfitter.control.principal import Principal
from taskvectors import __version__

SERVICE = "outfitter"
_HEADERS = (b"traceparent", b"tracestate")


def exported(environment: Mapping[str, str]) -> "Traces":
    """Traces to the collector that the environment names, in the background."""
    name = environment.get("OTEL_SERVICE_NAME") or SERVICE
    resource = Resource.create({"service.name": name, "service.version": __version__})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Traces(provider)


class Traces:
    """Implements `Tracing` with a provider of OpenTelemetry, which is closed with it."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer(SERVICE)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, scope: Scope) -> Span:
        """Begin a span, below the one that the client names if it does."""
        given = {
            name.decode(): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in _HEADERS
        }
        span = self._tracer.start_span(
            scope["method"], self._propagator.extract(given), kind=SpanKind.SERVER
        )
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span))
        others = [(name, value) for name, value in scope["headers"] if name not in _HEADERS]
        told = [(name.encode(), value.encode("latin-1")) for name, value in carrier.items()]
        scope["headers"] = [*others, *told]
        return span

    def end(self, span: Span, scope: Scope, route: str, status: int) -> None:
        """End a span with the outcome that stands in the request's state, if one does."""
        state = scope["state"]
        outcome: Outcome | None = state.get("outcome")
        span.update_name(f"{scope['method']} {route}")
        attributes: dict[str, Any] = {
            "http.request.method": scope["method"],
            "http.route": route,
            "http.response.status_code": status,
            "outfitter.request_id": state["request_id"],
            **_who(outcome.principal if outcome is not None else state.get("principal")),
        }
        if outcome is not None:
            attributes |= _what(outcome)
            status = outcome.status
            if outcome.first_token is not None:
                ago = time.monotonic() - outcome.first_token
                span.add_event("first_token", timestamp=time.time_ns() - int(ago * 1e9))
        span.set_attributes(attributes)
        if status >= 500:
            code = outcome.code if outcome is not None else None
            span.set_status(Status(StatusCode.ERROR, code))
        span.end()

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _who(principal: Principal | None) -> dict[str, str]:
    if principal is None:
        return {}
    key = {} if principal.key is None else {"outfitter.key": principal.key}
    return {"outfitter.tenant": principal.tenant, **key}


def _what(outcome: Outcome) -> dict[str, str | int | bool]:
    saved = {} if outcome.saved_model is None else {"outfitter.saved_model": outcome.saved_model}
    exposure = outcome.exposure
    variant = {} if exposure is None else {"outfitter.variant": exposure.label}
    return {
        "outfitter.status": outcome.status,
        "outfitter.loadout": outcome.loadout,
        "outfitter.stream": outcome.is_stream,
        "outfitter.cached_tokens": outcome.cached_tokens,
        "gen_ai.request.model": outcome.model,
        "gen_ai.usage.input_tokens": outcome.prompt_tokens,
        "gen_ai.usage.output_tokens": outcome.completion_tokens,
        **saved,
        **variant,
    }
