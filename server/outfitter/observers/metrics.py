"""Requests and tokens in numbers for Prometheus, by tenant and saved loadout, within bounds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from outfitter.control.outcome import CLIENT_LEFT, Outcome
from outfitter.telemetry import COUNTER, HISTOGRAM, Described

MAX_PAIRS = 256
"""Pairs of tenant and model that have series of their own."""
MAX_MODELS = 32
"""Models of one tenant that have."""
MAX_ROUTES = 128
OTHER, BASE, AD_HOC, NONE = "(other)", "(base)", "(ad hoc)", "(none)"
"""Models that are no saved loadout; no name can be like these."""
_OWN_STATUS = (429, CLIENT_LEFT)
_PAIR = ("tenant", "model")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LONG = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)

REQUEST_METRICS = (
    Described(
        "outfitter_requests_total",
        COUNTER,
        "Relayed requests that have ended, also those refused.",
        "",
        ("route", "status", *_PAIR),
    ),
    Described("outfitter_prompt_tokens_total", COUNTER, "Tokens of prompts.", "", _PAIR),
    Described(
        "outfitter_cached_tokens_total",
        COUNTER,
        "Those of them that the prefix cache had.",
        "",
        _PAIR,
    ),
    Described("outfitter_completion_tokens_total", COUNTER, "Tokens of answers.", "", _PAIR),
    Described(
        "outfitter_time_to_first_token_seconds",
        HISTOGRAM,
        "From a request's arrival to the first token of its stream.",
        "",
        _PAIR,
    ),
    Described(
        "outfitter_inter_token_seconds",
        HISTOGRAM,
        "Mean time from one event to the next; one value for each stream.",
        "",
        _PAIR,
    ),
    Described(
        "outfitter_request_seconds",
        HISTOGRAM,
        "From a request's arrival to the end of its answer; refusals left out.",
        "",
        _PAIR,
    ),
    Described(
        "outfitter_http_responses_total",
        COUNTER,
        "Answers of every route, also to requests without a valid key.",
        "",
        ("route", "status"),
    ),
)
_BUCKETS: Mapping[str, tuple[float, ...]] = {
    "outfitter_time_to_first_token_seconds": _SECONDS,
    "outfitter_inter_token_seconds": _SHORT,
    "outfitter_request_seconds": _LONG,
}


@dataclass(frozen=True)
class _Series:
    """What belongs to one pair of tenant and model."""

    pair: tuple[str, str]
    prompt: Counter
    cached: Counter
    completion: Counter
    first_token: Histogram
    inter_token: Histogram
    seconds: Histogram


class RequestMetrics:
    """An observer that counts in a registry of its own; to be called from one thread."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._metrics: dict[str, Any] = {item.name: self._metric(item) for item in REQUEST_METRICS}
        self._series: dict[tuple[str, str], _Series] = {}
        self._num_models: dict[str, int] = {}
        self._routes: set[str] = set()

    def __call__(self, outcome: Outcome) -> None:
        """Count a request that has ended."""
        series = self._of(outcome.principal.tenant, model_label(outcome))
        status = status_label(outcome.status)
        requests = self._metrics["outfitter_requests_total"]
        requests.labels(outcome.route, status, *series.pair).inc()
        series.prompt.inc(outcome.prompt_tokens)
        series.cached.inc(outcome.cached_tokens)
        series.completion.inc(outcome.completion_tokens)
        if (first := outcome.first_token_seconds) is not None:
            series.first_token.observe(first)
        if (gap := outcome.inter_token_seconds) is not None:
            series.inter_token.observe(gap)
        if outcome.seconds is not None and not outcome.is_error:
            series.seconds.observe(outcome.seconds)

    def responded(self, route: str, status: int) -> None:
        """Count an answer of any route, which is named by its pattern."""
        if route not in self._routes and len(self._routes) >= MAX_ROUTES:
            route = OTHER
        self._routes.add(route)
        self._metrics["outfitter_http_responses_total"].labels(route, status_label(status)).inc()

    def text(self) -> bytes:
        """Prometheus' text format. May be called in another thread."""
        return generate_latest(self.registry)

    def _metric(self, item: Described) -> Counter | Histogram:
        if item.kind == COUNTER:
            return Counter(item.name, item.help, item.labels, registry=self.registry)
        return Histogram(
            item.name, item.help, item.labels, buckets=_BUCKETS[item.name], registry=self.registry
        )

    def _of(self, tenant: str, model: str) -> _Series:
        """The series of a pair, or of all that are too many."""
        found = self._series.get((tenant, model))
        if found is not None:
            return found
        if self._num_models.get(tenant, 0) >= MAX_MODELS and model != OTHER:
            return self._of(tenant, OTHER)
        if len(self._series) >= MAX_PAIRS and tenant != OTHER:
            return self._of(OTHER, OTHER)
        self._num_models[tenant] = self._num_models.get(tenant, 0) + 1
        made = self._series[tenant, model] = self._made((tenant, model))
        return made

    def _made(self, pair: tuple[str, str]) -> _Series:
        names = (
            *("prompt_tokens_total", "cached_tokens_total", "completion_tokens_total"),
            *("time_to_first_token_seconds", "inter_token_seconds", "request_seconds"),
        )
        return _Series(pair, *(self._metrics[f"outfitter_{name}"].labels(*pair) for name in names))


def status_label(status: int) -> str:
    """`2xx`; 429 and 499 by themselves, as they are nobody's fault."""
    return str(status) if status in _OWN_STATUS else f"{status // 100}xx"


def model_label(outcome: Outcome) -> str:
    """The saved loadout's name, never a digest."""
    if outcome.saved_name is not None:
        return outcome.saved_name
    if not outcome.loadout:
        return NONE
    return BASE if outcome.loadout == "base" else AD_HOC
