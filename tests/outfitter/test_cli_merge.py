"""`outfitter merge` as a person runs it, with wrong input, too."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from taskvectors.checkpoint import fingerprint
from taskvectors.delta import Array, DenseDelta, LowRankDelta, SparseDelta
from taskvectors.format import file_digest, read_header, read_vector, write_vector
from taskvectors.merge import merge_vectors
from taskvectors.methods import METHODS
from taskvectors.vector import BaseInfo, TaskVector
from tests.outfitter.test_cli import fails, invoke, wide_terminal

__all__ = ["wide_terminal"]

UP, DOWN, NORM = (f"model.layers.0.{part}.weight" for part in ("up_proj", "down_proj", "norm"))
SHAPES = {UP: (8, 4), DOWN: (4, 8), NORM: (4,)}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: `base/`, and the files `a`, `b`, `up` (sparse), `low` and `lower`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_base(tmp_path / "base", 0)
    for seed, name in enumerate(("a", "b"), start=1):
        save(tmp_path, name, sparse(seed))
    save(tmp_path, "up", {UP: sparse(1)[UP]})
    for seed, name in enumerate(("low", "lower"), start=3):
        save(tmp_path, name, low_rank(seed))
    return tmp_path


def save_base(folder: Path, seed: int) -> dict[str, Array]:
    """A checkpoint with configuration and tokenizer; returns its weights."""
    rng = np.random.default_rng(seed)
    weights = {name: rng.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    return weights


def save(folder: Path, name: str, parameters: dict) -> None:
    info = BaseInfo("base", fingerprint(folder / "base"))
    vector = TaskVector(info, parameters, {"license": "MIT"})
    write_vector(vector, folder / f"{name}.safetensors")


def sparse(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    index = np.sort(rng.choice(32, 9, replace=False))
    norm = DenseDelta(rng.standard_normal(4, np.float32))
    return {UP: SparseDelta((8, 4), index, rng.standard_normal(9, np.float32)), NORM: norm}


def low_rank(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    shapes = {UP: (8, 4), DOWN: (4, 8)}
    return {
        name: LowRankDelta(
            shape,
            rng.standard_normal((seed - 1, shape[1]), np.float32),
            rng.standard_normal((shape[0], seed - 1), np.float32),
            0.5,
        )
        for name, shape in shapes.items()
    }


def expected(weights: list[float], method: str = "linear", **parameters: float) -> TaskVector:
    vectors = [read_vector(f"{name}.safetensors") for name in "ab"]
    return merge_vectors(vectors, weights, method, **parameters)


def assert_equal(file: str, vector: TaskVector) -> None:
    written = read_vector(file)
    assert written.parameters.keys() == vector.parameters.keys()
    for name in vector:
        np.testing.assert_allclose(written.delta(name), vector.delta(name), rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("home")
def test_vectors_with_weights_become_one_file() -> None:
    """The command's line names the file and its digest; the file says how it was made."""
    result = invoke("merge", "a.safetensors=0.7", "b.safetensors=-1", "-o", "out.safetensors")
    assert result.exit_code == 0, result.stderr
    digest = file_digest("out.safetensors")
    assert re.fullmatch(rf"out\.safetensors [\d.]+ KiB sha256:{digest}\n", result.stdout)
    assert_equal("out.safetensors", expected([0.7, -1]))
    card = read_header("out.safetensors").metadata
    assert (card["license"], card["base_model_relation"]) == ("MIT", "merge")


@pytest.mark.usefixtures("home")
def test_a_method_and_its_parameters() -> None:
    """`--set` takes numbers, truth values and words."""
    sets = ("--set", "density=0.2", "--set", "lambda=2", "--set", "normalize=false")
    result = invoke(
        "merge", "a.safetensors", "b.safetensors", "--method", "ties", *sets, "-o", "t.safetensors"
    )
    assert result.exit_code == 0, result.stderr
    parameters = {"density": 0.2, "lambda": 2, "normalize": False}
    assert_equal("t.safetensors", expected([1, 1], "ties", **parameters))
    task = ("--method", "tall_masks", "--set", "task=b.safetensors")
    result = invoke("merge", "a.safetensors", "b.safetensors", *task, "-o", "m.safetensors")
    assert result.exit_code == 0, result.stderr


def test_a_loadout_file_and_names_of_a_store(home: Path) -> None:
    """The same bytes as on the command line, wherever the file lies."""
    assert invoke("push", "b.safetensors", "--name", "acme/b", "--store", "s").exit_code == 0
    (home / "sub").mkdir()
    value = {"vectors": {"../a.safetensors": 0.7, "acme/b": 0.3}, "method": "ties"}
    (home / "sub" / "loadout.json").write_text(json.dumps(value))
    for output in ("1.safetensors", "2.safetensors"):
        spec = ("--spec", "sub/loadout.json", "--store", "s")
        line = ("a.safetensors=0.7", "b.safetensors=0.3", "--method", "ties")
        result = invoke("merge", *(spec if output[0] == "1" else line), "-o", output)
        assert result.exit_code == 0, result.stderr
    assert file_digest("1.safetensors") == file_digest("2.safetensors")


@pytest.mark.usefixtures("home")
def test_values_are_rounded_on_request() -> None:
    """Else they are as computed: float32."""
    for options, dtype in (((), "F32"), (("--dtype", "bf16"), "BF16")):
        result = invoke("merge", "a.safetensors=0.7", *options, "-o", "out.safetensors")
        assert result.exit_code == 0, result.stderr
        assert {s.dtype for s in read_header("out.safetensors").parameters.values()} == {dtype}


def test_a_folder_as_output_is_a_checkpoint(home: Path) -> None:
    """Base plus merge, with what a loader needs; the line names the new fingerprint."""
    line = ("a.safetensors=0.7", "b.safetensors=0.3", "--base", "base", "-o", "out")
    result = invoke("merge", *line)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.endswith(f"in 1 file, fingerprint {fingerprint('out')}\n")
    merged, base = load_file("out/model.safetensors"), load_file("base/model.safetensors")
    vector = expected([0.7, 0.3])
    for name, weights in base.items():
        np.testing.assert_allclose(merged[name], vector.apply_to(name, weights), rtol=1e-6)
    assert {path.name for path in (home / "out").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    fails(invoke("merge", *line), "out is not empty")
    result = invoke("merge", *line[:-1], "sharded", "--max-shard-size", "100B")
    assert "in 3 files" in result.stdout


@pytest.mark.usefixtures("home")
def test_a_method_that_needs_the_base_gets_it() -> None:
    """And says so without."""
    line = ("merge", "a.safetensors", "b.safetensors", "--method", "slerp", "-o", "s.safetensors")
    fails(invoke(*line), "needs the base")
    assert invoke(*line, "--base", "base").exit_code == 0


FILES = ("a.safetensors", "b.safetensors", "-o", "out.safetensors")
TIES = (*FILES, "--method", "ties")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-o", "out.safetensors"), ("name the vectors to merge", "--spec")),
        (("aa.safetensors", "-o", "x.safetensors"), ("no file", "did you mean 'a.safetensors'")),
        (("a", "-o", "x.safetensors"), ("'a'", "--store", "did you mean 'a.safetensors'")),
        (("a.safetensors=much", "-o", "x.safetensors"), ("'a.safetensors'", "'much'")),
        (("a.safetensors=nan", "-o", "x.safetensors"), ("finite", "nan")),
        (("a.safetensors=99", "-o", "x.safetensors"), ("within ±16", "99")),
        (("a.safetensors=0", "-o", "x.safetensors"), ("adds nothing",)),
        ((*FILES, "--method", "tise"), ("'tise'", "did you mean 'ties'")),
        ((*FILES, "--set", "density=0.1"), ("'density'", "takes none")),
        ((*TIES, "--set", "density=0"), ("density must be above 0 to 1", "'0'")),
        ((*TIES, "--set", "density=2"), ("density must be above 0 to 1", "'2'")),
        ((*TIES, "--set", "density=NaN"), ("density must be", "'nan'")),
        ((*TIES, "--set", "density=lots"), ("density must be a number", "'lots'")),
        ((*TIES, "--set", "densty=0.1"), ("unknown parameter 'densty'", "density, lambda")),
        ((*TIES, "--set", "density"), ("--set 'density'", "NAME=VALUE")),
        ((*TIES, "--set", "vectors=[]"), ("--set 'vectors=[]'",)),
        ((*TIES, "--set", "density=1", "--set", "density=0.5"), ("'density' twice",)),
        ((*FILES, "--dtype", "int4"), ("--dtype 'int4'", "fp32")),
        ((*FILES, "--max-shard-size", "1GB"), ("--max-shard-size is for checkpoints",)),
        ((*FILES, "--store", "nowhere"), ("--store 'nowhere'", "no such folder")),
        ((*FILES, "--spec", "x.json"), ("--spec says it all",)),
        (("--spec", "nowhere.json", "-o", "x.safetensors"), ("nowhere.json",)),
        (("a.safetensors", "-o", "x"), ("a checkpoint needs --base",)),
        (("a.safetensors", "-o", "x", "--base", "nowhere"), ("nowhere", "safetensors")),
        (("a.safetensors", "-o", "x", "--base", "base", "--dtype", "bf16"), ("--dtype is for",)),
        (
            ("a.safetensors", "-o", "x", "--base", "base", "--max-shard-size", "lots"),
            ("size 'lots'",),
        ),
        (("a.safetensors", "-o", "a.safetensors"), ("is one of the vectors",)),
        (("a.safetensors", "-o", "no/x.safetensors"), ("there is no folder no",)),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_a_mistake_is_one_line(
    home: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """What was wrong, the value, what would be right; and nothing is written."""
    before = sorted(path.name for path in home.iterdir())
    fails(invoke("merge", *arguments), *words)
    assert sorted(path.name for path in home.iterdir()) == before


def test_another_base_is_one_line(home: Path) -> None:
    """Both fingerprints are named, for a checkpoint and for a file."""
    save_base(home / "other", 9)
    both = (fingerprint("base"), fingerprint("other"))
    fails(invoke("merge", "a.safetensors", "--base", "other", "-o", "out"), *both)
    fails(invoke("merge", "a.safetensors", "--base", "other", "-o", "o.safetensors"), *both)
    assert not (home / "out").exists()
    assert not (home / "o.safetensors").exists()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"modules": ["up_porj"]}, ("modules 'up_porj' match nothing", "did you mean 'up_proj'")),
        ({"layers": ["7-9"]}, ("layers '7-9' match nothing", "layers 0 to 0")),
    ],
)
def test_a_selection_that_names_nothing_is_one_line(
    home: Path, entry: dict[str, object], words: tuple[str, ...]
) -> None:
    """A typo in layers or modules does not end in a merge without the vector."""
    (home / "l.json").write_text(json.dumps([{"file": "a.safetensors", **entry}]))
    line = ("merge", "--spec", "l.json")
    fails(invoke(*line, "-o", "x.safetensors"), *words, "that the vectors change")
    fails(invoke(*line, "-o", "x", "--base", "base"), *words, "of the base")


def test_a_broken_vector_is_one_line(home: Path) -> None:
    """The format's own words."""
    content = (home / "a.safetensors").read_bytes()
    (home / "broken.safetensors").write_bytes(content[:-1])
    fails(invoke("merge", "broken.safetensors", "-o", "x.safetensors"), "end")
    (home / "nan.json").write_text('{"a.safetensors": NaN}')
    fails(invoke("merge", "--spec", "nan.json", "-o", "x.safetensors"), "nan.json", "NaN")


def test_every_method_and_parameter_is_listed() -> None:
    """`--list-methods` needs nothing else; what it shows can be typed."""
    text = invoke("merge", "--list-methods").stdout
    for method in METHODS.values():
        assert re.search(rf"^{method.name}( \[.*\])?: ", text, re.MULTILINE)
        assert method.paper in text
        for parameter in method.parameters:
            assert f"--set {parameter.name}=" in text
            assert parameter.description in text


def test_the_base_is_not_overwritten(home: Path) -> None:
    """By its own name, or by that of a link to it."""
    weights = home / "base" / "model.safetensors"
    before = weights.read_bytes()
    (home / "link.safetensors").symlink_to(weights)
    for out in ("base/model.safetensors", "link.safetensors"):
        fails(invoke("merge", "a.safetensors", "--base", "base", "-o", out), "choose another name")
    assert weights.read_bytes() == before


@pytest.mark.usefixtures("home")
def test_numbers_are_typed_as_people_do() -> None:
    """`.2` is no JSON, but a number; `inf` is a word."""
    ties = ("merge", "a.safetensors", "b.safetensors", "--method", "ties", "-o", "t.safetensors")
    assert invoke(*ties, "--set", "density=.2").exit_code == 0
    assert_equal("t.safetensors", expected([1, 1], "ties", density=0.2))
    fails(invoke(*ties, "--set", "density=inf"), "density must be a number, not 'inf'")
