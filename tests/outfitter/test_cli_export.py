"""`outfitter export` and `import` as a person runs them, with wrong input, too."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from taskvectors.checkpoint import fingerprint
from taskvectors.format import file_digest, read_header, read_vector
from tests.outfitter.test_cli import fails, invoke, wide_terminal
from tests.outfitter.test_cli_merge import DOWN, NORM, UP, home, save_base

__all__ = ["home", "wide_terminal"]


def test_a_low_rank_loadout_becomes_a_lora(home: Path) -> None:
    """It imports again as the sum that it is."""
    (home / "l.json").write_text('{"low.safetensors": 0.7, "lower.safetensors": -0.3}')
    result = invoke("export", "--spec", "l.json", "--to", "peft", "-o", "out", "--base", "base")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "out LoRA of 2 modules, rank up to 5, for base\n"
    result = invoke("import", "out", "-o", "again.safetensors", "--base", "base")
    assert result.exit_code == 0, result.stderr
    assert file_digest("again.safetensors") in result.stdout
    total = read_vector("low.safetensors") * 0.7 + read_vector("lower.safetensors") * -0.3
    again = read_vector("again.safetensors")
    for name in (UP, DOWN):
        np.testing.assert_allclose(again.delta(name), total.delta(name), rtol=1e-5, atol=1e-6)


def test_a_checkpoint_is_what_merge_writes(home: Path) -> None:
    """One code, two commands."""
    line = ("a.safetensors=0.7", "low.safetensors", "--base", "base")
    assert invoke("merge", *line, "-o", "one").exit_code == 0
    result = invoke("export", *line, "--to", "checkpoint", "-o", "two")
    assert result.exit_code == 0, result.stderr
    assert fingerprint("one") == fingerprint("two")
    assert (home / "two" / "config.json").exists()
    result = invoke("export", *line, "--to", "checkpoint", "-o", "3", "--max-shard-size", "100")
    assert "in 3 files" in result.stdout


@pytest.mark.usefixtures("home")
def test_a_lossless_vector_alone_is_the_fine_tuned_checkpoint() -> None:
    """Bit for bit, which the command says that it checked."""
    save_base(Path("tuned"), 5)
    extracted = invoke("extract", "base", "tuned", "-o", "v.safetensors", "--lossless")
    assert extracted.exit_code == 0, extracted.stderr
    result = invoke("export", "v.safetensors", "--to", "checkpoint", "--base", "base", "-o", "out")
    assert "bit for bit" in result.stderr
    tuned, out = load_file("tuned/model.safetensors"), load_file("out/model.safetensors")
    assert {name: array.tobytes() for name, array in tuned.items()} == {
        name: array.tobytes() for name, array in out.items()
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a.safetensors", "--to", "peft"), (f"{NORM} is not low-rank", "--to checkpoint")),
        (("up.safetensors", "--to", "peft"), (f"{UP} is not low-rank", "--to shira")),
        (("low.safetensors", "--to", "shira"), (f"{DOWN} is not a sparse delta",)),
        (("a.safetensors", "--to", "shira"), ("is no", "--to checkpoint")),
        (("a.safetensors", "--to", "gguf"), ("--to checkpoint", "convert_hf_to_gguf.py")),
        (("a.safetensors", "--to", "onnx"), ("'onnx'; choose peft, shira, checkpoint",)),
        (("a.safetensors", "--to", "checkpoint"), ("--to checkpoint needs --base",)),
        (("low.safetensors", "--to", "peft", "--max-shard-size", "1GB"), ("--max-shard-size",)),
        (("--to", "peft"), ("name the vectors",)),
        (("lwo.safetensors", "--to", "peft"), ("did you mean 'low.safetensors'",)),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_a_mistake_is_one_line(
    home: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """What was wrong and what to use instead; nothing is written."""
    before = sorted(path.name for path in home.iterdir())
    fails(invoke("export", *arguments, "-o", "out"), *words)
    assert sorted(path.name for path in home.iterdir()) == before


def test_another_base_is_one_line(home: Path) -> None:
    """For an adapter, too, if the base is given."""
    save_base(home / "other", 9)
    arguments = ("low.safetensors", "--to", "peft", "--base", "other", "-o", "out")
    fails(invoke("export", *arguments), fingerprint("base"), fingerprint("other"))
    assert not (home / "out").exists()


def test_an_adapter_of_an_unknown_kind_is_one_line(home: Path) -> None:
    """Recognised by peft_type; the old name of the command still works."""
    assert invoke("export", "low.safetensors", "--to", "peft", "-o", "out").exit_code == 0
    config = home / "out" / "adapter_config.json"
    fields = json.loads(config.read_text()) | {"base_model_name_or_path": "org/elsewhere"}
    config.write_text(json.dumps(fields))
    result = invoke("import-lora", "out", "-o", "x.safetensors", "--dtype", "bf16")
    assert result.exit_code == 0
    assert "--base checks it" in result.stderr
    assert read_header("x.safetensors").parameters[UP].dtype == "BF16"
    fails(invoke("import", "out", "-o", "y", "--dtype", "int4"), "--dtype 'int4'")
    config.write_text(json.dumps(fields | {"peft_type": "LOHA"}))
    fails(invoke("import", "out", "-o", "y"), "'LOHA'; choose LORA, SHIRA")
    fails(invoke("import", "nowhere", "-o", "y"), "nowhere")
