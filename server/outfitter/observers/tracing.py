"""Whether requests are traced, as OpenTelemetry's own variables say; costs nothing where not."""

from collections.abc import Mapping
from typing import Any, Protocol

from outfitter.config import InvalidConfig

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Tracing(Protocol):
    """Makes the span of each request."""

    def begin(self, scope: Any) -> Any:
        """The span of an ASGI request, which afterwards names it as the parent in its headers."""
        ...

    def end(self, span: Any, scope: Any, route: str, status: int) -> None:
        """End it with what became of the request."""
        ...

    def close(self) -> None:
        """Send what is left; may block for seconds."""
        ...


def open_tracing(environment: Mapping[str, str]) -> Tracing | None:
    """Tracing to the collector that the environment names; None where it names none.

    Raises InvalidConfig where OpenTelemetry is not installed.
    """
    named = next((name for name in ENDPOINTS if environment.get(name)), None)
    if named is None:
        return None
    try:
        from outfitter.observers import traces
    except ImportError as error:
        advice = "pip install 'outfitter[otel]', or unset it"
        raise InvalidConfig(f"{named} is set, which needs OpenTelemetry: {advice}") from error
    return traces.exported(environment)
