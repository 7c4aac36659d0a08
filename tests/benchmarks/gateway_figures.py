"""From the rows of the gateway's benchmark to its figures, and to the tables of its page. Pure."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]
DIRECT = "direct"
KINDS = {"short": "whole short answer", "first_event": "first event of a stream"}


def latency_figures(rows: Rows) -> list[dict[str, Any]]:
    """For each number of streams and side: p50 and p99 in ms, and what they are above direct's.

    Medians over the rounds; `least` is of the round with the least of it.
    """
    table = []
    for streams, name, mine in _groups(rows, "latency", "streams"):
        direct = {
            r["round"]: r for r in rows if r["side"] == DIRECT and r.get("streams") == streams
        }
        figures: dict[str, Any] = {"streams": streams, "side": name}
        for kind in KINDS:
            for percent in (50, 99):
                own = [_quantile(r, kind, percent) for r in mine]
                base = [_quantile(direct[r["round"]], kind, percent) for r in mine]
                added = [a - b for a, b in zip(own, base, strict=True)]
                label = f"{kind}_p{percent}_ms"
                figures[label] = round(statistics.median(own), 3)
                if name != DIRECT:
                    figures[f"{label}_added"] = round(statistics.median(added), 3)
                    figures[f"{label}_added_least"] = round(min(added), 3)
        table.append(figures)
    return table


def throughput_figures(rows: Rows) -> list[dict[str, Any]]:
    """For each way of writing and side: events per second, and per CPU second of its process."""
    table = []
    for way, name, mine in _groups(rows, "throughput", "way"):
        per_second = [r["events"] / r["seconds"] for r in mine]
        figures = {"way": way, "side": name, "events_per_s": round(statistics.median(per_second))}
        if all(r["cpu_seconds"] for r in mine):
            per_cpu = [r["events"] / r["cpu_seconds"] for r in mine]
            figures["events_per_cpu_s"] = round(statistics.median(per_cpu))
        table.append(figures)
    return table


def latency_table(figures: Rows) -> str:
    """Markdown: what each side adds to p50 and p99, in ms."""
    lines = ["| streams | | " + " | ".join(f"{k} p50 | p99" for k in KINDS.values()) + " |"]
    lines.append("|--:|---|" + "--:|" * 4)
    labels = [f"{kind}_p{percent}_ms" for kind in KINDS for percent in (50, 99)]
    for row in figures:
        cells = [_latency_cell(row, label) for label in labels]
        lines.append(f"| {row['streams']} | {row['side']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def throughput_table(figures: Rows) -> str:
    """Markdown: events per second of each side, and per second of its CPU time."""
    lines = ["| upstream writes | | events/s | events per CPU second |", "|---|---|--:|--:|"]
    for row in figures:
        per_cpu = row.get("events_per_cpu_s")
        told = "" if per_cpu is None else f"{per_cpu:,}"
        lines.append(f"| {row['way']} | {row['side']} | {row['events_per_s']:,} | {told} |")
    return "\n".join(lines) + "\n"


def memory_table(figures: Mapping[str, Sequence[float]]) -> str:
    """Markdown: KiB for each open stream."""
    lines = ["| | each of the first 256 | each of 256 more |", "|---|--:|--:|"]
    lines += [f"| {name} | {first} | {more} |" for name, (first, more) in figures.items()]
    return "\n".join(lines) + "\n"


def _latency_cell(row: Mapping[str, Any], label: str) -> str:
    added, least = row.get(f"{label}_added"), row.get(f"{label}_added_least")
    if added is None:
        return f"{row[label]:.2f} in all"
    return f"{added:+.2f} ({least:+.2f})"


def _groups(rows: Rows, measure: str, key: str) -> Iterable[tuple[Any, str, Rows]]:
    """The rows of each value of `key` and side, in the order in which they first came."""
    mine = [row for row in rows if row["measure"] == measure]
    for value in dict.fromkeys(row[key] for row in mine):
        for side in sorted({row["side"] for row in mine}):
            yield value, side, [r for r in mine if r[key] == value and r["side"] == side]


def _quantile(row: Mapping[str, Any], kind: str, percent: int) -> float:
    """Milliseconds."""
    times = sorted(int(number) for number in row[f"{kind}_us"].split())
    return times[min(len(times) - 1, len(times) * percent // 100)] / 1000
