"""`outfitter extract` and `inspect` as a person uses them, with wrong input too."""

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner, Result

from outfitter.cli import app
from outfitter.commands import console
from taskvectors.checkpoint import fingerprint
from taskvectors.extract import OPTIONS, Restoration
from taskvectors.format import file_digest, read_header

UP = "model.layers.{}.mlp.up_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are not cut."""
    monkeypatch.setattr("outfitter.commands.console.out._width", 200)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fails(result: Result, *words: str) -> None:
    """One clear line on stderr, status 1, no traceback, nothing on stdout."""
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert all(word in result.stderr for word in words), result.stderr


def checkpoint(folder: Path, seed: int, **more: Any) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    tensors = {UP.format(i): rng.standard_normal((20, 30)).astype(np.float32) for i in range(3)}
    tensors[NORM] = rng.standard_normal(30).astype(np.float32)
    save_file({**tensors, **more}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A base and a fine-tuned checkpoint."""
    return checkpoint(tmp_path / "base", 1), checkpoint(tmp_path / "tuned", 2)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), {"method": "magnitude", "density": 0.01}),
        (("--scope", "global"), {"method": "magnitude", "density": 0.01, "scope": "global"}),
        (("--method", "dare", "--seed", 3), {"method": "dare", "density": 0.1, "seed": 3}),
        (
            ("--method", "della", "--density", 0.3, "--epsilon", 0.2),
            {"method": "della", "density": 0.3, "epsilon": 0.2, "seed": 0},
        ),
        (
            ("--method", "breadcrumbs", "--gamma", 0.05),
            {"method": "breadcrumbs", "density": 0.1, "gamma": 0.05},
        ),
        (("--method", "low-rank"), {"method": "low_rank", "rank": 16, "seed": 0}),
        (
            ("--method", "low-rank", "--energy", 0.5),
            {"method": "low_rank", "energy": 0.5, "seed": 0},
        ),
    ],
    ids=str,
)
def test_every_method_runs(
    tmp_path: Path, pair: tuple[Path, Path], arguments: tuple[object, ...], expected: object
) -> None:
    """With its own options, which the file then names."""
    out = tmp_path / "x.safetensors"
    result = invoke("extract", *pair, "-o", out, *arguments)
    assert result.exit_code == 0, result.stderr
    extraction = dict(read_header(out).metadata["extraction"])
    if {"dare", "della"} & set(arguments):
        assert extraction.pop("finetuned_fingerprint") == fingerprint(pair[1])
    assert extraction == expected
    assert f"sha256:{file_digest(out)}" in result.stdout
    assert "entropy bound" in result.stdout


def test_a_cut_that_keeps_little_says_so(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """Cut by size, and only then: random entries and directions carry more than their energy."""
    few = ("-o", tmp_path / "x", "--density", 0.02)
    assert "of the change is kept" in invoke("extract", *pair, *few).stderr
    assert "is kept" not in invoke("extract", *pair, *few, "--method", "dare").stderr
    assert "is kept" not in invoke("extract", *pair, "-o", tmp_path / "x", "--density", 1).stderr


def test_a_lossless_file_restores_the_checkpoint(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """`--lossless` needs no other option."""
    out = tmp_path / "x"
    assert invoke("extract", *pair, "-o", out, "--lossless").exit_code == 0
    with Restoration(out, pair[0]) as restoration:
        restoration.verify()


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "int8", "ternary"])
@pytest.mark.parametrize("index", ["auto", "u16", "bitmap"])
def test_values_and_indices_are_chosen(
    tmp_path: Path, pair: tuple[Path, Path], dtype: str, index: str
) -> None:
    """By --dtype and --index."""
    out = tmp_path / "x"
    arguments = ("--density", 0.1, "--dtype", dtype, "--index", index, "--license", "MIT")
    assert invoke("extract", *pair, "-o", out, *arguments).exit_code == 0
    header = read_header(out)
    assert header.metadata["license"] == "MIT"
    spec = header.parameters[UP.format(0)]
    assert spec.values == dtype
    assert spec.index == ("u8" if index == "auto" else index)


def test_json_says_what_was_kept(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """The report adds energies to what `inspect --json` says of the same file."""
    out = tmp_path / "x"
    arguments = ("extract", *pair, "-o", out, "--density", 0.1, "--json")
    report = json.loads(invoke(*arguments).stdout)
    held = json.loads(invoke("inspect", out, "--json").stdout)
    assert report["digest"] == held["digest"] == f"sha256:{file_digest(out)}"
    assert report["unchanged"] == []
    for name, fields in held["parameters"].items():
        assert fields.items() <= report["parameters"][name].items()
        assert 0 < report["parameters"][name]["kept"] <= 1
    up = held["parameters"][UP.format(1)]
    assert (up["stored_values"], up["density"], up["bytes_per_value"]) == (60, 0.1, 3.0)
    assert held["total"]["bytes"] == sum(p["bytes"] for p in held["parameters"].values())
    assert held["total"]["entropy_bound_bytes"] < held["total"]["bytes"]
    assert report["total"]["kept"] == pytest.approx(
        sum(p["kept_energy"] for p in report["parameters"].values())
        / sum(p["energy"] for p in report["parameters"].values())
    )


def test_rows_are_kinds_or_parameters(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """Layers together, or with --per-layer each by itself, for both commands."""
    out = tmp_path / "x"
    for command in (("extract", *pair, "-o", out), ("inspect", out)):
        together, apart = invoke(*command).stdout, invoke(*command, "--per-layer").stdout
        assert together.count("mlp.up_proj") == 1
        assert "layers.1.mlp.up_proj" not in together
        assert apart.count("mlp.up_proj") == 3
        assert all(f"layers.{i}.mlp.up_proj" in apart for i in range(3))


def test_what_did_not_change_is_counted(tmp_path: Path) -> None:
    """Parameters that both checkpoints share are left out."""
    base, tuned = (
        checkpoint(tmp_path / name, 1, v=np.full((2, 2), value, np.float32))
        for name, value in (("base", 1), ("tuned", 2))
    )
    result = invoke("extract", base, tuned, "-o", tmp_path / "x")
    assert result.exit_code == 0
    assert "4 parameters did not change" in result.stdout


def test_a_checkpoint_minus_itself_is_refused(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """Nothing is written, and what was there stays."""
    out = tmp_path / "x"
    fails(invoke("extract", pair[0], pair[0], "-o", out), "nothing differs between")
    assert not out.exists()
    out.write_text("kept")
    fails(invoke("extract", pair[0], pair[0], "-o", out, "--lossless"), "nothing differs between")
    assert out.read_text() == "kept"


def test_checkpoints_are_not_overwritten(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """Neither the base nor the fine-tuned one, by any name."""
    for folder in pair:
        weights = folder / "model.safetensors"
        link, before = tmp_path / f"{folder.name}-link", weights.read_bytes()
        link.symlink_to(weights)
        for out in (weights, folder / ".." / folder.name / weights.name, link):
            fails(invoke("extract", *pair, "-o", out), "choose another name")
        assert weights.read_bytes() == before


def test_strangers_do_not_steer_the_terminal(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """Control characters of metadata, of names and of arguments are shown as question marks."""
    out, hostile = tmp_path / "x", "\x1b[2J\x9bgone\r"
    base, tuned = (
        checkpoint(tmp_path / name, seed) for name, seed in (("\x1b[2Jbase", 3), ("other", 4))
    )
    assert invoke("extract", base, tuned, "-o", out, "--license", hostile).exit_code == 0
    for arguments in (("inspect", out), ("inspect", out, "--per-layer"), ("inspect", hostile)):
        result = invoke(*arguments)
        assert not {"\x1b", "\x9b", "\r"} & set(result.output)
        assert "?[2J" in result.output


def test_inspect_shows_exceptions_and_metadata(tmp_path: Path) -> None:
    """Markup of strangers is shown as it is."""
    base = checkpoint(tmp_path / "base", 1, v=np.ones((2, 2), np.float32))
    tuned = checkpoint(tmp_path / "tuned", 1, v=np.full((2, 2), 1 + 2**-9 + 2**-20, np.float32))
    out = tmp_path / "x"
    extra = ("--lossless", "--dtype", "bf16", "--license", "[bold]MIT")
    assert invoke("extract", base, tuned, "-o", out, *extra).exit_code == 0
    shown = invoke("inspect", out).stdout
    assert "[bold]MIT" in shown
    assert "finetuned_fingerprint" in shown
    row = next(line for line in shown.splitlines() if line.strip().startswith("v "))
    assert row.split()[-1] == "4"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--density", 0), ("--density must be above 0", "not 0.0")),
        (("--density", 2), ("--density must be above 0", "not 2.0")),
        (("--density", "nan"), ("--density must be above 0", "not nan")),
        (("--method", "topk"), ("unsupported --method 'topk'; choose magnitude, dare",)),
        (("--method", "dare", "--rank", 4), ("--rank is of no use with --method dare", "--seed")),
        (("--lossless", "--density", 0.1), ("--density is of no use with --lossless",)),
        (("--lossless", "--method", "dare"), ("--lossless and --method dare exclude each other",)),
        (("--lossless", "--dtype", "int8"), ("--dtype int8 is of no use with --lossless",)),
        (("--method", "low-rank", "--dtype", "int8"), ("--dtype int8", "--method low-rank")),
        (("--method", "low-rank", "--rank", 2, "--energy", 0.5), ("--rank and --energy exclude",)),
        (("--method", "della", "--epsilon", 0.5), ("--epsilon does not fit --density",)),
        (("--scope", "layer"), ("unsupported --scope 'layer'; choose tensor, global",)),
        (("--dtype", "int4"), ("unsupported --dtype 'int4'; choose fp32",)),
        (("--index", "u64"), ("unsupported --index 'u64'; choose auto",)),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(
    tmp_path: Path, pair: tuple[Path, Path], arguments: tuple[object, ...], words: tuple[str, ...]
) -> None:
    """One line that names them as they are typed."""
    fails(invoke("extract", *pair, "-o", tmp_path / "x", *arguments), *words)
    assert not (tmp_path / "x").exists()


def test_checkpoints_that_make_no_sense_are_refused(
    tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    """A missing folder or shard, NaN, another shape or dtype: which, and what to do."""
    base, tuned = pair
    out = ("-o", tmp_path / "x")
    fails(invoke("extract", base, tmp_path / "nowhere", *out), "there is no folder", "nowhere")
    (tmp_path / "empty").mkdir()
    fails(invoke("extract", base, tmp_path / "empty", *out), "neither model.safetensors nor")
    fails(invoke("extract", base, tuned, "-o", tmp_path / "no" / "x"), "there is no folder")
    sharded = tmp_path / "sharded"
    shutil.copytree(tuned, sharded)
    (sharded / "model.safetensors").rename(sharded / "model-1.safetensors")
    weight_map = {NORM: "model-1.safetensors", UP.format(0): "model-2.safetensors"}
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    fails(invoke("extract", base, sharded, *out), "model-2.safetensors is missing", "download")
    nan = checkpoint(tmp_path / "nan", 2, **{NORM: np.full(30, np.nan, np.float32)})
    fails(invoke("extract", base, nan, *out), f"difference of {NORM} is not finite", "nan in the")
    wide = checkpoint(tmp_path / "wide", 2, **{NORM: np.ones(31, np.float32)})
    fails(invoke("extract", base, wide, *out), f"{NORM} is [30] in the base, [31]")
    eight = checkpoint(
        tmp_path / "eight", 2, **{NORM: np.ones(30).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)}
    )
    fails(invoke("extract", base, eight, *out), f"{NORM} is U8", "dequantize")
    assert not (tmp_path / "x").exists()


def test_inspect_refuses_what_is_no_task_vector(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """A missing file, a folder, a checkpoint."""
    fails(invoke("inspect", tmp_path / "nowhere"), "there is no file", "nowhere")
    fails(invoke("inspect", tmp_path), "there is no file")
    fails(invoke("inspect", pair[0] / "model.safetensors"), "not a task vector file")


def test_the_bar_shows_bytes_rate_and_time_left() -> None:
    """Where somebody looks at it."""
    kinds = {type(column).__name__ for column in console.byte_progress().columns}
    assert kinds >= {"DownloadColumn", "TransferSpeedColumn", "TimeRemainingColumn"}


def test_the_help_names_every_option_of_the_library() -> None:
    """A method or default that is added there appears here."""
    text = " ".join(invoke("extract", "--help").stdout.split())
    for method, options in OPTIONS.items():
        assert method.replace("_", "-") in text
        for option in options:
            assert f"--{option}" in text
