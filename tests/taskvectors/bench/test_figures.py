"""Figures, goals and reports, from numbers known beforehand."""

import json
from pathlib import Path

import pytest

from taskvectors.bench.goals import Goal, Verdict, goals, judge
from taskvectors.bench.measures import Figure, Spread, differences, error_of_median, ratios
from taskvectors.bench.plot import write_png
from taskvectors.bench.report import rows, summary, text_table, to_json
from taskvectors.bench.run import Outcome
from taskvectors.bench.settings import InvalidBench, Settings


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 300}')
    return tmp_path


def figure(key: str, *samples: float, unit: str = "× plain's speed") -> Figure:
    return Figure(key, f"the figure {key}", unit, samples, {"plain": 0.25, "plugin": 0.5})


def outcome(settings: Settings) -> Outcome:
    figures = (
        figure("decode/1/plugin/base", 0.96, 0.97, 0.99),
        figure("prefill/plugin", 0.85),
        figure("activation/plugin", 1200.0, 1300.0, unit="µs"),
        Figure("ttft/added", "added", "ms", (0.1, 0.2, 0.6), {}, error=0.15),
    )
    wanted = goals((1,), 16, on_gpu=False)
    verdicts = judge({figure.key: figure for figure in figures}, wanted)
    return Outcome(settings, "cpu", figures, tuple(verdicts))


def test_a_spread_is_the_median_and_the_quartiles() -> None:
    """By linear interpolation between the two neighbours."""
    assert Spread.of([5, 1, 2, 4, 3]) == Spread(3, 2, 4, 5)
    assert Spread.of([1, 2]) == Spread(1.5, 1.25, 1.75, 2)
    assert Spread.of([7.0]) == Spread(7, 7, 7, 1)


def test_ratios_and_differences_pair_the_rounds() -> None:
    """The first of one way with the first of the other; a round that lacks one is an error."""
    assert ratios([2, 9], [4, 3]) == (0.5, 3)
    assert differences([2, 9], [4, 3]) == (-2, 6)
    with pytest.raises(ValueError, match="zip"):
        ratios([1, 2], [1])


def test_the_error_of_a_median_shrinks_with_the_scatter_and_repeats() -> None:
    """Zero for equal values; scaled with them; the same for the same seed."""
    values = [1.0, 2.0, 4.0, 8.0, 9.0]
    error = error_of_median(values, seed=1)
    assert error == error_of_median(values, seed=1)
    assert error_of_median([3.0] * 9, seed=1) == 0
    assert error_of_median([10 * v for v in values], seed=1) == pytest.approx(10 * error)
    assert error == pytest.approx(2.5993, rel=0.05)  # over all 5^5 draws


@pytest.mark.parametrize(
    ("sense", "value", "is_met"),
    [("≥", 0.98, True), ("≥", 0.9799, False), ("≤", 0.98, True), ("≤", 0.9801, False)],
)
def test_a_goal_includes_its_limit(sense: str, value: float, is_met: bool) -> None:
    """On the right side of it, or on it."""
    goal = Goal("x", "x", "≥" if sense == "≥" else "≤", 0.98)
    assert Verdict(goal, value).is_met is is_met


def test_only_what_was_measured_is_judged_and_by_its_median() -> None:
    """A scenario that was left out is neither met nor missed."""
    figures = {"decode/1/plugin/base": figure("decode/1/plugin/base", 0.1, 0.99, 0.99)}
    [verdict] = judge(figures, goals((1, 16), 16, on_gpu=False))
    assert verdict.value == 0.99
    assert verdict.is_met


def test_a_gpu_has_goals_of_its_own() -> None:
    """Stricter, and for every batch that holds all loadouts; a CPU's for the first such batch."""
    limits = {g.key: g.limit for g in goals((1, 16, 64, 128), 32, on_gpu=True)}
    assert limits["decode/1/plugin/base"] == 0.99
    assert limits["decode/64/plugin/many"] == limits["decode/128/plugin/many"] == 0.90
    assert "decode/16/plugin/many" not in limits
    limits = {g.key: g.limit for g in goals((1, 16, 64), 16, on_gpu=False)}
    assert limits["decode/64/plugin/base"] == 0.98
    assert limits["decode/16/plugin/many"] == 0.85
    assert limits["decode/16/stock-over-plugin/many"] == 2
    assert "decode/64/plugin/many" not in limits


def test_a_row_has_the_figure_and_its_goal(model: Path) -> None:
    """A figure without a goal has none; one value has no quartiles; an error stands beside."""
    first, prefill, activation, ttft = rows(outcome(Settings(model, on_gpu=False)))
    name = "the figure decode/1/plugin/base"
    quartiles = "0.965 – 0.980"
    assert first.cells == (name, "0.970", quartiles, "× plain's speed", "≥ 0.98", "missed")
    assert (first.is_met, prefill.is_met, activation.is_met) == (False, True, None)
    assert prefill.cells[1:3] == ("0.850", "")
    assert activation.cells[1:] == ("1,250", "1,225 – 1,275", "µs", "", "")
    assert ttft.cells[1] == "0.200 ± 0.15"


def test_the_text_has_a_line_for_each_figure_and_counts_the_goals(model: Path) -> None:
    """With a head."""
    found = outcome(Settings(model, on_gpu=False))
    assert len(text_table(found).splitlines()) == 5
    assert summary(found) == "2 of 3 goals met; cpu, float32, compiled, 1 thread(s), seed 3"


def test_the_json_has_what_is_needed_to_repeat_it(model: Path) -> None:
    """Command, seed, settings, all samples, and verdicts; it is JSON."""
    settings = Settings(model, on_gpu=False, seed=5, quick=True)
    found = json.loads(json.dumps(to_json(outcome(settings), "outfitter bench")))
    assert (found["command"], found["seed"]) == ("outfitter bench", 5)
    assert found["settings"]["batches"] == [1, 16]
    assert found["settings"]["quick"] is True
    assert found["settings"]["graphs_and_compilation"].startswith("plain and plugin compiled")
    assert found["figures"][0]["samples"] == [0.96, 0.97, 0.99]
    assert found["figures"][0]["median"] == 0.97
    assert found["figures"][3]["error_of_median"] == 0.15
    assert [goal["is_met"] for goal in found["goals"]] == [False, True, True]


def test_the_picture_is_a_png(model: Path, tmp_path: Path) -> None:
    """Of the panels that have figures."""
    write_png(outcome(Settings(model, on_gpu=False)), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"scenarios": ("decode", "speed")}, "unknown scenario 'speed'; choose memory, decode"),
        ({"batches": (1, 0)}, "a batch must be at least 1, not 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"threads": -1}, "threads must be at least 1"),
        ({"batches": ()}, "nothing to measure"),
        ({"memory": 1.5}, "memory must be a share above 0"),
        ({"memory": float("nan")}, "memory must be a share above 0"),
        ({"model": Path("/nowhere")}, "/nowhere has no config.json"),
    ],
)
def test_what_cannot_run_is_told_before_an_engine_starts(
    wrong: dict[str, object], says: str, model: Path
) -> None:
    """Each setting by name, with the value."""
    with pytest.raises(InvalidBench, match=says):
        Settings(**{"model": model, **wrong})  # type: ignore[arg-type]


def test_the_device_decides_what_is_not_said(model: Path) -> None:
    """Type, batches, and how many loadouts; prompts fit the model."""
    cpu, gpu = Settings(model, on_gpu=False), Settings(model, on_gpu=True)
    assert (cpu.value_dtype, gpu.value_dtype) == ("float32", "bfloat16")
    assert (cpu.decode_batches, gpu.decode_batches) == ((1, 16, 64), (1, 16, 64, 128))
    assert (cpu.many, gpu.many) == (16, 32)
    assert cpu.prefill_tokens == gpu.prefill_tokens == 299
    assert Settings(model, batches=(64, 1, 64)).decode_batches == (1, 64)
