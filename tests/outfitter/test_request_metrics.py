"""What is counted of requests, by whom they were; and what is passed on of the engine's."""

import importlib.util
import re
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from outfitter.control.outcome import Outcome
from outfitter.control.principal import Principal
from outfitter.engine.metrics import COUNTERS, GAUGES, HISTOGRAMS, MAX_LINES, kept_metrics
from outfitter.observers.metrics import (
    MAX_MODELS,
    MAX_PAIRS,
    MAX_ROUTES,
    REQUEST_METRICS,
    RequestMetrics,
)
from tests.outfitter.fake_engine import METRICS as ENGINE_TEXT
from tests.outfitter.harness import make_config, make_vector, push, running, wait_for
from tests.outfitter.test_metrics import sample_names, samples


def ended(tenant: str = "acme", **fields: object) -> Outcome:
    principal = Principal(tenant, "of_1", frozenset())
    outcome = Outcome(
        **{
            "request_id": "r",
            "principal": principal,
            "route": "/v1/completions",
            "model": "base-model",
            "saved_model": None,
            "loadout": "base",
            "is_stream": True,
            "began": 10.0,
            **fields,
        }
    )
    outcome.ended = 12.0
    return outcome


def counted(*outcomes: Outcome) -> dict[str, float]:
    metrics = RequestMetrics()
    for outcome in outcomes:
        metrics(outcome)
    return read(metrics)


def read(metrics: RequestMetrics) -> dict[str, float]:
    return {
        " ".join((sample.name, *sample.labels.values())): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def test_a_stream_is_counted() -> None:
    """By its tenant and its saved loadout, of whatever version."""
    found = counted(
        ended(
            saved_model="acme/bot@3",
            loadout="sha256:1",
            status=200,
            first_token=10.5,
            last_token=11.5,
            num_events=11,
            prompt_tokens=7,
            cached_tokens=5,
            completion_tokens=20,
        )
    )
    assert found["outfitter_requests_total acme/bot /v1/completions 2xx acme"] == 1
    assert found["outfitter_prompt_tokens_total acme/bot acme"] == 7
    assert found["outfitter_cached_tokens_total acme/bot acme"] == 5
    assert found["outfitter_completion_tokens_total acme/bot acme"] == 20
    assert found["outfitter_time_to_first_token_seconds_sum acme/bot acme"] == 0.5
    assert found["outfitter_inter_token_seconds_sum acme/bot acme"] == 0.1
    assert found["outfitter_request_seconds_sum acme/bot acme"] == 2
    assert {name.split(" ")[0] for name in found} <= sample_names(REQUEST_METRICS)


@pytest.mark.parametrize(
    ("fields", "model"),
    [
        ({"loadout": "base"}, "(base)"),
        ({"loadout": "sha256:" + "0" * 64}, "(ad hoc)"),
        ({"loadout": ""}, "(none)"),
        ({"loadout": "", "saved_model": "bot"}, "bot"),
    ],
)
def test_a_model_that_is_not_saved_has_one_label(fields: dict, model: str) -> None:
    """No digest is a label."""
    assert f"outfitter_prompt_tokens_total {model} acme" in counted(ended(**fields))


@pytest.mark.parametrize(
    ("status", "label"), [(200, "2xx"), (404, "4xx"), (429, "429"), (499, "499"), (502, "5xx")]
)
def test_statuses_are_counted_by_class(status: int, label: str) -> None:
    """But for those that tell of neither party's fault; only answers have a duration."""
    found = counted(ended(status=status))
    assert found[f"outfitter_requests_total (base) /v1/completions {label} acme"] == 1
    has_duration = found["outfitter_request_seconds_count (base) acme"] == 1
    assert has_duration == (status in (200, 499))


def test_labels_are_bounded() -> None:
    """What is too much is counted together, and nothing is lost."""
    metrics = RequestMetrics()
    for tenant in range(MAX_PAIRS):
        for model in range(3):
            metrics(ended(f"t{tenant}", saved_model=f"m{model}", prompt_tokens=1))
    for model in range(2 * MAX_MODELS):
        metrics(ended("t0", saved_model=f"x{model}", prompt_tokens=1))
    for route in range(2 * MAX_ROUTES):
        metrics.responded(f"/{route}", 200)
    found = read(metrics)
    tokens = [name for name in found if name.startswith("outfitter_prompt_tokens_total")]
    assert len(tokens) <= MAX_PAIRS + 2
    assert sum(found[name] for name in tokens) == 3 * MAX_PAIRS + 2 * MAX_MODELS
    routes = [name for name in found if name.startswith("outfitter_http_responses_total")]
    assert len(routes) == MAX_ROUTES + 1
    assert found["outfitter_http_responses_total (other) 2xx"] == MAX_ROUTES


def test_one_tenant_does_not_use_up_the_labels() -> None:
    """After so many models its own are counted together, and others have theirs."""
    outcomes = [ended("flood", saved_model=f"m{number}") for number in range(MAX_PAIRS)]
    found = counted(*outcomes, ended("quiet", saved_model="bot"))
    assert "outfitter_prompt_tokens_total bot quiet" in found
    assert "outfitter_prompt_tokens_total (other) flood" in found


def test_requests_are_exposed_with_the_engine_s_own(tmp_path: Path) -> None:
    """Under vLLM's names, without a series for each loadout that runs."""
    with running(make_config(tmp_path)) as gateway, gateway.client as client:
        gateway.wait_ready()
        push(client, make_vector(tmp_path / "v"), "skill")
        body = {"model": "base-model", "prompt": "p", "stream": True, "task_vectors": {"skill": 1}}
        assert client.post("/v1/completions", json=body).status_code == 200
        wait_for(lambda: 'status="2xx",tenant="open"' in client.get("/metrics").text)
        text = client.get("/metrics").text
        found = samples(client)
    assert found["outfitter_requests_total (ad hoc) /v1/completions 2xx open"] == 1
    assert found["outfitter_completion_tokens_total (ad hoc) open"] == 3
    assert found["outfitter_requests_running"] == 0
    assert found["outfitter_streams_open"] == 0
    assert found["vllm:num_requests_running 0 base-model"] == 3
    assert found["vllm:time_to_first_token_seconds_count 0 base-model"] == 2
    assert not re.search(r"sha256|tv:|lora|_created|python_gc", text)


def test_what_runs_is_told(tmp_path: Path) -> None:
    """Requests and streams that are open now."""
    with running(make_config(tmp_path)) as gateway, gateway.client as client:
        gateway.wait_ready()
        body = {"model": "base-model", "prompt": "hang midway", "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as response:
            chunks = response.iter_bytes()
            next(chunks)
            with gateway.client as other:
                found = samples(other)
            assert found["outfitter_requests_running"] == 1
            assert found["outfitter_streams_open"] == 1


def test_what_is_passed_on_is_bounded() -> None:
    """However much an engine says."""
    lines = 'vllm:num_requests_running{engine="0"} 1\n' * 3 * MAX_LINES
    assert kept_metrics(lines).count("\n") == MAX_LINES
    assert kept_metrics("") == ""
    families = list(text_string_to_metric_families(kept_metrics(ENGINE_TEXT)))
    assert [family.name for family in families] == [
        *("vllm:num_requests_running", "vllm:prefix_cache_hits"),
        "vllm:time_to_first_token_seconds",
    ]


def test_the_engine_s_names_are_vllm_s() -> None:
    """As its source spells them."""
    vllm = importlib.util.find_spec("vllm")
    if vllm is None:
        pytest.skip("vllm is not installed")
    [folder] = vllm.submodule_search_locations
    source = Path(folder, "v1", "metrics", "loggers.py").read_text()
    for name in (*COUNTERS, *GAUGES, *HISTOGRAMS):
        assert f'"{name}"' in source, name


def test_answers_of_every_route_are_counted(client: httpx.Client) -> None:
    """By the pattern of the route, not by what a client writes."""
    before = samples(client)
    client.get("/v1/task_vectors/nobody")
    client.get("/v1/nowhere")
    after = samples(client)
    for route in ("/v1/task_vectors/{reference:path} 4xx", "(none) 4xx"):
        name = f"outfitter_http_responses_total {route}"
        assert after[name] == before.get(name, 0) + 1
    assert not any("nobody" in name or "nowhere" in name for name in after)
