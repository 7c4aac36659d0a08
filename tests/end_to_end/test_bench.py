"""`outfitter bench` on a small random model: every scenario, with real engines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig

from taskvectors.bench.engines import Engine, EngineFailed, EngineSpec
from taskvectors.bench.settings import SCENARIOS
from tests.end_to_end.test_architectures import SHAPE

PREFIXES = {
    "memory": ["memory/low rank r8", "memory/sparse 1%", "memory/largest"],
    "decode": ["decode/1/plugin/base", "decode/16/stock/many", "decode/16/plain"],
    "prefill": ["prefill/plugin", "prefill/stock"],
    "flat": ["flat/16", "flat/64", "flat/all", "flat/change"],
    "activation": ["activation/plugin", "activation/stock", "activation/ratio"],
    "ttft": ["ttft/added"],
}
"""Without the one that starts a server, which has a test of its own."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A configuration without weights."""
    config = LlamaConfig(**SHAPE)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("scenarios", "mode"),
    [
        pytest.param(("flat",), ["--eager"], id="one"),
        pytest.param(tuple(PREFIXES), [], id="all", marks=pytest.mark.slow),
    ],
)
def test_a_scenario_is_measured(
    model: Path, tmp_path: Path, scenarios: tuple[str, ...], mode: list[str]
) -> None:
    """With figures, goals, a picture, and what is needed to repeat it; whatever the figures are.

    By default one that needs a single engine, which is not compiled.
    """
    results, picture = tmp_path / "results.json", tmp_path / "plot.png"
    done = _bench(
        *("--model", model, "--dummy", "--quick", *mode, "--steps", 2, "--seed", 9),
        *("-o", results, "--plot", picture, "--scenarios", ",".join(scenarios)),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(results.read_text())
    figures = {figure["key"]: figure for figure in found["figures"]}
    assert {*PREFIXES, "server"} == set(SCENARIOS)
    for name in scenarios:
        assert figures.keys() >= set(PREFIXES[name])
    for key, figure in figures.items():
        low, high = figure["quartiles"]
        assert low <= figure["median"] <= high
        assert key.endswith(("/added", "/change")) or low > 0
        assert figure["label"] in done.stdout
    if "decode" in scenarios:
        assert len(figures["decode/16/plugin/many"]["samples"]) == 2
    assert found["goals"]
    assert {goal["key"] for goal in found["goals"]} <= figures.keys()
    assert len(found["goals"]) == 9 or len(scenarios) < len(PREFIXES)
    assert found["command"].startswith("outfitter bench --model")
    assert (found["seed"], found["settings"]["device"]) == (9, "cpu")
    assert found["versions"]["numpy"]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_first_token_is_timed_through_the_api_server(model: Path, tmp_path: Path) -> None:
    """In pairs of a loadout that is new and one that is not."""
    results = tmp_path / "results.json"
    given = ("--model", model, "--dummy", "--quick", "--scenarios", "server", "-o", results)
    done = _bench(*given)
    assert done.returncode == 0, done.stderr
    [figure] = json.loads(results.read_text())["figures"]
    assert figure["key"] == "server/added"
    assert len(figure["samples"]) == 10
    assert min(figure["seconds"].values()) > 0


def test_a_model_without_weights_is_refused_in_one_line(model: Path) -> None:
    """Before an engine is started."""
    done = _bench("--model", model)
    assert done.returncode == 1
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert "has neither model.safetensors nor" in line


@pytest.mark.slow
def test_an_engine_that_does_not_start_says_why(model: Path) -> None:
    """With the last lines that it printed."""
    spec = EngineSpec("plain", model, "float64", extra={"load_format": "dummy"})
    with pytest.raises(EngineFailed, match=r"(?s)the plain engine: .*float64"), Engine(spec):
        pass


def _bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("outfitter")), "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
