"""What lies in deploy/ is sound: every metric that it names exists, and every file it mounts."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from outfitter.engine import metrics as engine_metrics
from outfitter.observers.metrics import REQUEST_METRICS
from outfitter.telemetry import METRICS
from tests.outfitter.harness import Running
from tests.outfitter.test_metrics import sample_names

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/outfitter.json").read_text())
RULES = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="wants promtool, of Prometheus")


def rules() -> list[dict[str, Any]]:
    return [rule for group in RULES["groups"] for rule in group["rules"]]


def exists() -> set[str]:
    """Every name that Prometheus knows of a gateway."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    return {"up"} | sample_names((*METRICS, *REQUEST_METRICS)) | engine_metrics.SAMPLES | recorded


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    """Where each is, and its text, with Grafana's variables filled in."""
    for panel in panels():
        for target in panel["targets"]:
            text = target["expr"].replace("$__rate_interval", "1m").replace("$__range", "1h")
            yield panel["title"], text
    for rule in rules():
        yield rule.get("alert") or rule["record"], rule["expr"]


def names_in(expression: str) -> set[str]:
    """The metrics that an expression selects."""
    found: set[str] = set()

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.add(node.name)
        for field in ("expr", "lhs", "rhs", "args", "param", "vector_selector"):
            below = getattr(node, field, None)
            for child in below if isinstance(below, list) else [below]:
                if child is not None and not isinstance(child, str):
                    visit(child)

    visit(promql_parser.parse(expression))
    return found


def test_names_are_found_in_expressions() -> None:
    """Wherever they are: else the next test could not fail."""
    text = "topk(3, sum by (x) (rate(a[1m]))) / min_over_time(b[5m]) > 1 and (c{d='e'} or -f)"
    assert names_in(text) == {"a", "b", "c", "f"}


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_expression_is_of_metrics_that_exist(where: str, expression: str) -> None:
    """In the dashboard, the recording rules and the alerts."""
    names = names_in(expression)
    assert names
    assert names <= exists(), where


def test_the_dashboard_can_be_provisioned() -> None:
    """What Grafana wants of a file: ids, a data source that is chosen, and panels side by side."""
    assert DASHBOARD["uid"] == "outfitter"
    assert "id" not in DASHBOARD
    assert DASHBOARD["schemaVersion"] >= 36
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        where = panel["gridPos"]
        assert where["x"] + where["w"] <= 24
        taken = {
            (where["x"] + x, where["y"] + y) for x in range(where["w"]) for y in range(where["h"])
        }
        assert not taken & cells, panel["title"]
        cells |= taken
    for panel in panels():
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_what_is_told_of_now_is_not_of_an_hour_ago() -> None:
    """A gateway that is gone has no last value; and without thresholds Grafana is red from 80."""
    stats = [panel for panel in panels() if panel["type"] == "stat"]
    assert stats
    for panel in stats:
        assert all(target["instant"] and "range" not in target for target in panel["targets"])
        assert {"thresholds", "noValue"} <= panel["fieldConfig"]["defaults"].keys()


def test_every_line_has_its_name_below_or_beside_it() -> None:
    """All that Grafana's schema wants of a legend is said."""
    for panel in panels():
        if panel["type"] == "timeseries":
            legend = panel["options"]["legend"]
            assert legend.keys() == {"showLegend", "displayMode", "placement", "calcs"}
            assert legend["showLegend"]
            assert all(target["legendFormat"] for target in panel["targets"])


def test_the_dashboard_s_variables_are_defined_and_used() -> None:
    """And asked of metrics that exist."""
    variables = {item["name"]: item for item in DASHBOARD["templating"]["list"]}
    text = json.dumps(DASHBOARD["panels"])
    assert set(variables) == {"datasource", "instance", "tenant", "model"}
    assert all(f"${name}" in text or f"${{{name}}}" in text for name in variables)
    for name, item in variables.items():
        if item["type"] == "query":
            metric = item["definition"].removeprefix("label_values(").partition(",")[0]
            assert metric in exists()
            assert item["definition"] == f"label_values({metric}, {name})"


def test_every_alert_says_what_to_do() -> None:
    """How bad it is, what happens and where to look."""
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert rule["annotations"].keys() == {"summary", "description"}


def test_compose_mounts_what_is_there() -> None:
    """Every file of ours, every volume, and every service that another waits for."""
    services = COMPOSE["services"]
    for name, service in services.items():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).exists(), mount
            elif not mount.startswith("${"):
                assert source in COMPOSE["volumes"], mount
        assert set(service.get("depends_on", ())) <= services.keys()
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
    build = services["outfitter"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()


def test_prometheus_has_a_key_for_the_gateway() -> None:
    """The gateway of the stack listens for others, so it asks for one."""
    command = COMPOSE["services"]["outfitter"]["command"]
    assert "--host=0.0.0.0" in command
    scrapes = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    [file] = [scrape["authorization"]["credentials_file"] for scrape in scrapes]
    [secret] = COMPOSE["services"]["prometheus"]["secrets"]
    assert file == f"/run/secrets/{secret}"
    assert COMPOSE["secrets"][secret] == {"environment": "OUTFITTER_METRICS_KEY"}


def test_the_container_copies_what_is_there() -> None:
    """Every path that the Dockerfile names."""
    for line in (DEPLOY / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            for source in line.split()[1:-1]:
                assert (DEPLOY.parent / source).exists(), source


def test_every_file_is_explained() -> None:
    """In the folder's README."""
    readme = (DEPLOY / "README.md").read_text()
    for path in DEPLOY.rglob("*"):
        where = path.relative_to(DEPLOY)
        if path.is_file() and where.parts[0] not in ("demo", "README.md"):
            assert f"({where.as_posix()})" in readme, where


def promtool(*arguments: object, **options: Any) -> None:
    command = [str(PROMTOOL), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    """And the rules do what their tests say."""
    promtool("check", "config", "--syntax-only", DEPLOY / "prometheus/prometheus.yml")
    promtool("check", "rules", DEPLOY / "prometheus/rules.yml")
    promtool("test", "rules", DEPLOY / "prometheus/rules_test.yml")


@needs_promtool
def test_prometheus_takes_the_dashboard_s_expressions(tmp_path: Path) -> None:
    """Each as if it were a rule."""
    made = [{"record": f"x{n}", "expr": text} for n, (_, text) in enumerate(expressions())]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": made}]}))
    promtool("check", "rules", tmp_path / "rules.yml")


@needs_promtool
def test_prometheus_takes_what_a_gateway_exposes(gateway: Running) -> None:
    """Names, kinds, helps and units of our own metrics."""
    with gateway.client as client:
        body = {"model": "base-model", "prompt": "p", "stream": True}
        client.post("/v1/completions", json=body)
        text = client.get("/metrics").text
    own = [line for line in text.splitlines() if "vllm:" not in line]
    promtool("check", "metrics", input="\n".join(own) + "\n")
