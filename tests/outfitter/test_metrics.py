"""What the gateway tells of its store: metrics, statistics, care by command; warming."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner, Result

from outfitter.cli import app
from outfitter.engine import metrics as engine_metrics
from outfitter.observers.metrics import REQUEST_METRICS
from outfitter.telemetry import METRICS, Described, SnapshotCollector, markdown_table
from tests.outfitter.harness import Running, make_config, make_vector, push, running, wait_for

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def samples(client: httpx.Client) -> dict[str, float]:
    """By name and labels, as Prometheus parses them."""
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def sample_names(metrics: tuple[Described, ...]) -> set[str]:
    """The names under which they are exposed."""
    ends = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
    return {item.name + end for item in metrics for end in ends.get(item.kind, ("",))}


def test_every_metric_is_documented() -> None:
    """The page is what the code says."""
    page = DOCS.read_text()
    assert markdown_table() in page
    assert markdown_table(REQUEST_METRICS) in page
    assert engine_metrics.markdown_table() in page


def test_every_metric_is_exposed_and_no_other(client: httpx.Client, gateway: Running) -> None:
    """With a name that follows Prometheus' conventions."""
    found = {name.split(" ")[0] for name in samples(client)}
    found = {name for name in found if not name.startswith("vllm:")} - sample_names(REQUEST_METRICS)
    summaries = {item.name for item in METRICS if item.kind == "summary"}
    expected = {item.name for item in METRICS} - summaries
    expected |= {f"{name}_{end}" for name in summaries for end in ("count", "sum")}
    assert found == expected
    assert all(item.name.endswith("_total") == (item.kind == "counter") for item in METRICS)


def test_the_numbers_are_those_of_the_parts(client: httpx.Client) -> None:
    """The engine's as the engine tells them, and the gateway's own."""
    found = samples(client)
    assert found["outfitter_engine_up"] == 1
    assert found["outfitter_tier_hits_total engine memory"] == 3
    assert found["outfitter_tier_budget_bytes engine memory"] == 70
    assert found["outfitter_engine_load_seconds_sum"] == 0.25
    assert found["outfitter_pool_loads_total"] == 4
    assert found["outfitter_placement_decisions_total composed"] == 5
    assert found["outfitter_placement_decisions_total few_requests"] == 7
    assert found["outfitter_placement_failures_total"] == 2
    assert found["outfitter_tier_up gateway disk"] == 1
    assert found["outfitter_catalog_up"] == 1
    stats = client.get("/v1/store/stats").json()
    assert stats["engine"]["pool"]["budget"] == 90
    assert stats["catalog"]["generation"] == found["outfitter_catalog_generation"]


def test_what_is_unknown_is_left_out() -> None:
    """A missing number is not zero."""
    collector = SnapshotCollector({"engine": {"is_up": False}, "gateway": {"tiers": {}}})
    assert [metric.name for metric in collector.collect()] == ["outfitter_engine_up"]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Running]:
    with running(make_config(tmp_path)) as found:
        yield found.wait_ready()


def test_without_an_engine_the_rest_is_told(tmp_path: Path) -> None:
    """The engine's metrics are absent then."""
    with running(make_config(tmp_path), "--fail") as gateway, gateway.client as client:
        wait_for(lambda: bool(gateway.announced))
        found = samples(client)
        assert found["outfitter_engine_up"] == 0
        assert "outfitter_pool_loads_total" not in found
        assert found["outfitter_catalog_up"] == 1
        assert "engine: away" in invoke("store", "stats", "--url", gateway.url).stdout


def test_pins_are_warmed_at_start_and_after_a_restart(tmp_path: Path) -> None:
    """One that is not there is a warning, and the server is ready all the same."""
    config = make_config(tmp_path)
    with running(config) as gateway, gateway.client as client:
        gateway.wait_ready()
        digest = push(client, make_vector(tmp_path / "v"), "skill")["digest"].split(":")[1]
    with running(make_config(tmp_path, pins=("skill", "absent"))) as gateway:
        gateway.wait_ready()
        line = "warm: 1 of 2 pinned task vectors are resident"
        wait_for(lambda: line in gateway.announced)
        assert any("'absent' not resident: no task vector" in text for text in gateway.announced)
        with gateway.client as client:
            seen = client.get("/v1/store/stats").json()["engine"]["prefetched"]
            assert seen == [{"digests": [digest], "pin": True}]
            body = {"model": "base-model", "prompt": "die"}
            assert client.post("/v1/completions", json=body).status_code == 502
        wait_for(lambda: gateway.announced.count(line) == 2)


def test_a_saved_loadout_is_prefetched(tmp_path: Path, own: Running) -> None:
    """Nobody waits for it."""
    with own.client as client:
        digest = push(client, make_vector(tmp_path / "v"), "skill")["digest"].split(":")[1]
        body = {"name": "bot", "task_vectors": {"skill": 1.0}}
        assert client.post("/v1/loadouts", json=body).status_code == 201
        expected = [{"digests": [digest], "pin": False}]
        wait_for(lambda: client.get("/v1/store/stats").json()["engine"]["prefetched"] == expected)


def test_garbage_is_collected_by_command(tmp_path: Path, own: Running) -> None:
    """By URL; first only said, then done."""
    with own.client as client:
        digest = push(client, make_vector(tmp_path / "v"), "skill")["digest"].split(":")[1]
        assert client.delete("/v1/task_vectors/skill").status_code == 200
    arguments = ("store", "gc", "--url", own.url, "--grace", "0", "--json")
    for more, is_there in ((("--dry-run",), True), ((), False)):
        found = json.loads(invoke(*arguments, *more).stdout)
        assert found["digests"] == [digest]
        assert bool(list(own.config.store.rglob(f"{digest}*"))) == is_there
    assert json.loads(invoke(*arguments).stdout)["digests"] == []


@pytest.mark.parametrize(
    "body", [{"grace_s": -1}, {"grace_s": 10**400}, {"grace_s": True}, {"dry_run": 1}, {"x": 1}]
)
def test_a_wrong_collection_is_refused(client: httpx.Client, body: dict) -> None:
    """Nothing is dropped by a typing error."""
    response = client.post("/v1/store/gc", json=body)
    assert response.status_code == 400
    assert next(iter(body)) in response.json()["error"]["message"]


def test_a_damaged_file_is_found_quarantined_and_told(tmp_path: Path, own: Running) -> None:
    """Without another tier it is lost, and the command says so."""
    store = own.config.store
    with own.client as client:
        digest = push(client, make_vector(tmp_path / "v"), "skill")["digest"].split(":")[1]
        push(client, make_vector(tmp_path / "w", seed=1), "other")
    origin = own.config.tiers.redis_url
    assert invoke("store", "check", "--store", store).exit_code == 0
    [blob] = store.rglob(f"{digest}.safetensors")
    blob.chmod(0o600)
    blob.write_bytes(blob.read_bytes()[:-1] + b"\xff")
    result = invoke("store", "check", "--store", store)
    if origin is None:
        assert result.exit_code == 1
        assert f"sha256:{digest} lost" in result.stdout
    assert "2 files read" in result.stderr
    [kept] = json.loads(invoke("store", "quarantine", "--store", store, "--json").stdout)
    assert digest in kept["reason"]
    assert kept["bytes"] > 0
    with own.client as client:
        assert samples(client)["outfitter_quarantine_files"] == 1
