"""`outfitter experiment results`, `veto` and `events`, on a gateway over real HTTP."""

import csv
import io
import json
from collections.abc import Iterator
from typing import cast

import pytest

from tests.outfitter.experiments.piloted import Piloted, X, begun
from tests.outfitter.harness import Running, make_vector, push
from tests.outfitter.test_cli import fails, invoke


@pytest.fixture(scope="module", autouse=True)
def experiment(gateway: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One that runs, with a winner; nothing happens to it by itself."""
    file = make_vector(tmp_path_factory.mktemp("results") / "warm", seed=907)
    with gateway.client as client:
        push(client, file, "warm")
        begun(client, "asked")
        seen = Piloted(gateway, cast("object", None))  # type: ignore[arg-type]
        seen.see("asked", {"control": 250, "warm": 250}, grade={"control": 0.4, "warm": 0.8})
        yield
        client.post(f"{X}/asked/stop")
        client.delete(f"{X}/asked")
        client.delete("/v1/task_vectors/warm")


def run(gateway: Running, *arguments: object) -> str:
    result = invoke("experiment", *arguments, "--url", gateway.url)
    assert result.exit_code == 0, result.output
    return result.output


def test_results_are_told_in_words_numbers_and_csv(gateway: Running) -> None:
    """The same numbers as the API has."""
    told = run(gateway, "results", "asked")
    assert "winner: warm is better than control on good" in told
    assert "guardrail latency_s, warm: safe" in told
    with gateway.client as client:
        api = client.get(f"{X}/asked/results").json()
    shown = json.loads(run(gateway, "results", "asked", "--json"))
    assert shown["metrics"] == api["metrics"]
    rows = list(csv.DictReader(io.StringIO(run(gateway, "results", "asked", "--csv"))))
    warm = next(row for row in rows if row["metric"] == "good" and row["variant"] == "warm")
    compared = api["metrics"][0]["comparisons"][0]
    assert float(warm["lower"]) == compared["lower"]
    assert f"{compared['lower']:.4g} to {compared['upper']:.4g}" in told


def test_events_are_printed_one_by_one(gateway: Running) -> None:
    rows = list(csv.DictReader(io.StringIO(run(gateway, "events", "asked"))))
    assert len(rows) == 500
    assert {row["unit"] for row in rows} >= {"warm-2-0", "control-2-249"}


def test_acts_are_forbidden_and_allowed(gateway: Running) -> None:
    assert "must not do by itself: ship" in run(gateway, "veto", "asked", "ship")
    assert "must not do by itself: nothing" in run(gateway, "veto", "asked", "ship", "--lift")
    refused = invoke("experiment", "veto", "asked", "--url", gateway.url)
    fails(refused, "nothing is pending", "ship:warm")
    fails(invoke("experiment", "veto", "asked", "dance", "--url", gateway.url), "'dance'")
