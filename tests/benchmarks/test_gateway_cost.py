"""The gateway's cost: the benchmark runs and counts right, and the page says what it found."""

import json
from pathlib import Path

import pytest

from outfitter.engine.regular import head_of
from tests.benchmarks.gateway import RESULTS, WAYS, of_stand_in, parse
from tests.benchmarks.gateway_figures import (
    latency_figures,
    latency_table,
    memory_table,
    throughput_figures,
    throughput_table,
)
from tests.benchmarks.upstream import _bursts

DOCS = Path(__file__).parents[2] / "docs" / "gateway_cost.md"
SIDES = {"direct", "outfitter, base", "outfitter, loadout"}


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path: Path) -> None:
    """With tiny numbers, every side relays every event."""
    arguments = ["--rounds", "1", "--probes", "3", "--streams", "2", "--open", "4"]
    options = parse([*arguments, "--share", "0.01", "--router", "no-such-router"])
    result = of_stand_in(options)
    streamed = [row for row in result["rows"] if row["measure"] == "throughput"]
    assert {(row["side"], row["way"]) for row in streamed} == {(s, w) for s in SIDES for w in WAYS}
    assert all(row["events"] <= row["counted"] <= row["events"] + 64 * 2 for row in streamed)
    assert {row["side"] for row in result["figures"]["latency"]} == SIDES
    assert len(result["figures"]["kib_per_open_stream"]["outfitter, loadout"]) == 2
    assert result["vllm-router"] is None


def test_the_documented_tables_are_the_measured_ones() -> None:
    """docs/gateway_cost.md shows what the committed result says, which follows from its rows."""
    result = json.loads(RESULTS.read_text())
    figures, page = result["figures"], DOCS.read_text()
    assert figures["latency"] == latency_figures(result["rows"])
    assert figures["throughput"] == throughput_figures(result["rows"])
    assert latency_table(figures["latency"]) in page
    assert throughput_table(figures["throughput"]) in page
    assert memory_table(figures["kib_per_open_stream"]) in page


def test_what_is_added_is_told_round_by_round() -> None:
    """The median of the differences, and the least of them."""
    sides = {"direct": ("1000 1000", "3000 3000", "1000 1000"), "x": ("1500 9000",) * 3}
    rows = [
        {"measure": "latency", "side": side, "streams": 1, "round": turn}
        | dict.fromkeys(("short_us", "first_event_us"), times)
        for side, rounds in sides.items()
        for turn, times in enumerate(rounds)
    ]
    _, found = latency_figures(rows)
    assert (found["short_p50_ms"], found["short_p50_ms_added"]) == (9.0, 8.0)
    assert found["short_p50_ms_added_least"] == 6.0


def test_the_stand_in_streams_as_vllm_does() -> None:
    """One event in a chunk of HTTP, and all begin alike."""
    written = b"".join(_bursts("m", 20, 3, True))
    chunks = written.split(b"\r\n")[1::2]
    events = chunks[:20]
    assert len({head_of(event) for event in events}) == 1
    assert head_of(events[0]) is not None
    assert all(event.count(b"\n\n") == 1 for event in events)
    assert json.loads(chunks[20][6:])["usage"]["completion_tokens"] == 20
    assert chunks[21] == b"data: [DONE]\n\n"
