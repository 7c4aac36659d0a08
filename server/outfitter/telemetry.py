"""Metrics of a gateway, by name, and how each follows from a snapshot of its numbers. Pure."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

Snapshot = Mapping[str, Any]
"""What `GET /v1/store/stats` answers."""
COUNTER, GAUGE, SUMMARY, HISTOGRAM = "counter", "gauge", "summary", "histogram"
_TIER = ("process", "tier")
_REASON, _RESULT = ("reason",), ("result",)


@dataclass(frozen=True)
class Described:
    """One metric. path: where its number is in a snapshot, or in the numbers of one tier."""

    name: str
    kind: str
    help: str
    path: str
    labels: tuple[str, ...] = ()


METRICS = (
    Described("outfitter_tier_hits_total", COUNTER, "Loads that a tier served.", "hits", _TIER),
    Described(
        "outfitter_tier_misses_total", COUNTER, "Loads that a tier did not have.", "misses", _TIER
    ),
    Described(
        "outfitter_tier_errors_total", COUNTER, "Refusals of a tier to answer.", "errors", _TIER
    ),
    Described(
        "outfitter_tier_corrupt_total",
        COUNTER,
        "Damaged files or chunks dropped.",
        "corrupt",
        _TIER,
    ),
    Described(
        "outfitter_tier_evictions_total", COUNTER, "Files dropped for room.", "evictions", _TIER
    ),
    Described(
        "outfitter_tier_read_bytes_total", COUNTER, "Bytes read from a tier.", "read_bytes", _TIER
    ),
    Described(
        "outfitter_tier_written_bytes_total",
        COUNTER,
        "Bytes written to a tier.",
        "written_bytes",
        _TIER,
    ),
    Described(
        "outfitter_tier_read_seconds_total", COUNTER, "Time spent reading a tier.", "seconds", _TIER
    ),
    Described("outfitter_tier_bytes", GAUGE, "Bytes held, where known.", "nbytes", _TIER),
    Described("outfitter_tier_budget_bytes", GAUGE, "Bytes held at most.", "budget", _TIER),
    Described("outfitter_tier_up", GAUGE, "1 unless the tier is left alone.", "is_up", _TIER),
    Described(
        "outfitter_requests_running",
        GAUGE,
        "Relayed requests that have not ended.",
        "gateway.requests_running",
    ),
    Described(
        "outfitter_streams_open",
        GAUGE,
        "Those of them that have begun to stream.",
        "gateway.streams_open",
    ),
    Described(
        "outfitter_engine_up", GAUGE, "1 while the engine tells its numbers.", "engine.is_up"
    ),
    Described(
        "outfitter_engine_restarts_total",
        COUNTER,
        "How often the engine was started again.",
        "gateway.engine_restarts",
    ),
    Described(
        "outfitter_engine_load_seconds",
        SUMMARY,
        "Time to make a task vector resident, file included.",
        "engine.load_seconds",
    ),
    Described("outfitter_pool_vectors", GAUGE, "Resident task vectors.", "engine.pool.vectors"),
    Described("outfitter_pool_bytes", GAUGE, "Bytes of them.", "engine.pool.nbytes"),
    Described("outfitter_pool_budget_bytes", GAUGE, "Bytes at most.", "engine.pool.budget"),
    Described("outfitter_pool_loads_total", COUNTER, "Vectors loaded.", "engine.pool.loads"),
    Described(
        "outfitter_pool_evictions_total", COUNTER, "Vectors put out.", "engine.pool.evictions"
    ),
    Described(
        "outfitter_pool_waiting_requests",
        GAUGE,
        "Requests that wait for room in the pool.",
        "engine.pool.waiting",
    ),
    Described(
        "outfitter_placement_decisions_total",
        COUNTER,
        "Requests for linear loadouts, by how they are served and why.",
        "engine.placement.decisions",
        _REASON,
    ),
    Described(
        "outfitter_placement_compositions_total",
        COUNTER,
        "Linear loadouts composed, or found composed.",
        "engine.placement.compositions",
    ),
    Described(
        "outfitter_placement_failures_total",
        COUNTER,
        "Attempts that failed; the loadout is served plain.",
        "engine.placement.failures",
    ),
    Described(
        "outfitter_placement_requests_total",
        COUNTER,
        "Requests served by a composed form.",
        "engine.placement.requests",
    ),
    Described(
        "outfitter_placement_loadouts",
        GAUGE,
        "Linear loadouts that have a composed form.",
        "engine.placement.loadouts",
    ),
    Described("outfitter_catalog_up", GAUGE, "1 while the database answers.", "catalog.is_up"),
    Described(
        "outfitter_catalog_generation",
        GAUGE,
        "Rises with every change of the catalog.",
        "catalog.generation",
    ),
    Described(
        "outfitter_usage_pending",
        GAUGE,
        "Sums of usage that are not written yet.",
        "usage.pending",
    ),
    Described(
        "outfitter_usage_failures_total",
        COUNTER,
        "Attempts to write usage that failed.",
        "usage.failures",
    ),
    Described(
        "outfitter_shadow_requests_total",
        COUNTER,
        "Copies of requests for shadow variants: sent, failed, or dropped as there was no room.",
        "shadows.requests",
        _RESULT,
    ),
    Described(
        "outfitter_shadow_requests_pending",
        GAUGE,
        "Those that are being sent, or wait.",
        "shadows.pending",
    ),
    Described(
        "outfitter_experiment_events_total",
        COUNTER,
        "Events of experiments: recorded, written to the database, lost as the journal was full,"
        " bad as the database cannot hold them, ungraded as graders had no time.",
        "events.total",
        _RESULT,
    ),
    Described(
        "outfitter_experiment_events_failures_total",
        COUNTER,
        "Attempts to write events that failed.",
        "events.failures",
    ),
    Described(
        "outfitter_experiment_events_journal_bytes",
        GAUGE,
        "Events that wait in this process's journal.",
        "events.journal_bytes",
    ),
    Described(
        "outfitter_experiment_events_redis_up",
        GAUGE,
        "1 unless Redis is left alone, and events go to the journal.",
        "events.is_up",
    ),
    Described("outfitter_uploads_in_progress", GAUGE, "Unfinished uploads.", "uploads.in_progress"),
    Described(
        "outfitter_changes_connected",
        GAUGE,
        "1 while messages about changes come from Redis.",
        "changes.is_connected",
    ),
    Described("outfitter_quarantine_files", GAUGE, "Files in quarantine.", "quarantine.files"),
    Described("outfitter_quarantine_bytes", GAUGE, "Bytes of them.", "quarantine.nbytes"),
)


class SnapshotCollector(Collector):
    """The metrics of one snapshot; what the snapshot does not know is left out."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """Every metric that has a value."""
        for described in METRICS:
            values = list(_values(described, self._snapshot))
            if values:
                yield _family(described, values)


def markdown_table(metrics: Iterable[Described] = METRICS) -> str:
    """The reference of `metrics`."""
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for item in metrics:
        labels = ", ".join(f"`{label}`" for label in item.labels)
        rows.append(f"| `{item.name}` | {item.kind} | {labels} | {item.help} |")
    return "\n".join(rows) + "\n"


def _values(item: Described, snapshot: Snapshot) -> Iterator[tuple[list[str], Any]]:
    if item.labels in (_REASON, _RESULT):
        for label, value in (_at(snapshot, item.path) or {}).items():
            yield [str(label)], value
    elif item.labels:
        for process in ("gateway", "engine"):
            for tier, numbers in (snapshot.get(process, {}).get("tiers") or {}).items():
                if (value := _at(numbers, item.path)) is not None:
                    yield [process, str(tier)], value
    elif (value := _at(snapshot, item.path)) is not None:
        yield [], value


def _at(fields: object, path: str) -> Any:
    """The value at `a.b.c`; None where there is none."""
    for key in path.split("."):
        fields = fields.get(key) if isinstance(fields, Mapping) else None
    return fields


def _family(item: Described, values: list[tuple[list[str], Any]]) -> Metric:
    if item.kind == SUMMARY:
        summary = SummaryMetricFamily(item.name, item.help)
        for labels, value in values:
            summary.add_metric(labels, int(value["count"]), float(value["sum"]))
        return summary
    make: Callable[..., CounterMetricFamily | GaugeMetricFamily]
    make = CounterMetricFamily if item.kind == COUNTER else GaugeMetricFamily
    family = make(item.name, item.help, labels=item.labels)
    for labels, value in values:
        family.add_metric(labels, float(value))
    return family
