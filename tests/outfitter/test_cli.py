"""The command line, through typer's runner."""

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.core import TyperGroup as Group
from typer.main import get_command
from typer.testing import CliRunner, Result

from outfitter.cli import app
from outfitter.commands.listener import listen
from outfitter.commands.narrator import example, some_name, state_line
from outfitter.commands.serve import local_model, run
from outfitter.config import InvalidConfig
from outfitter.errors import CatalogUnavailable
from outfitter.opening import open_store
from taskvectors import __version__
from taskvectors.format import file_digest, read_header
from taskvectors.store.settings import TierSettings
from tests.outfitter.harness import Running, free_port, make_config, make_vector


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are not cut."""
    monkeypatch.setattr("outfitter.commands.console.out._width", 200)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fails(result: Result, *words: str) -> None:
    """One clear line on stderr, status 1, no traceback."""
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert all(word in result.stderr for word in words), result.stderr


def test_the_version_is_printed() -> None:
    """`outfitter --version`."""
    assert invoke("--version").stdout == f"outfitter {__version__}\n"


def commands(group: Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", list(commands(get_command(app))), ids=" ".join)
def test_every_command_has_help(path: tuple[str, ...]) -> None:
    """In its texts, square brackets would be taken for markup."""
    result = invoke(*path, "--help")
    assert result.exit_code == 0, result.exception
    assert "Usage: " in result.stdout


def test_a_command_that_asks_a_gateway_imports_little() -> None:
    """No web framework, no database, no Redis: it answers at once."""
    heavy = {"fastapi", "sqlalchemy", "redis", "uvicorn", "aiohttp"}
    code = (
        "import sys\nfrom outfitter.cli import app\n"
        "try:\n    app(['key', 'list', 'acme', '--url', 'http://127.0.0.1:9'])\n"
        "except SystemExit as left:\n"
        f"    sys.exit(left.code if not ({heavy} & sys.modules.keys()) else 3)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")


def test_importing_the_command_line_loads_no_torch() -> None:
    """Tools and gateways start fast and need no engine."""
    code = "import sys, outfitter.cli; sys.exit(bool({'torch', 'vllm'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_push_list_delete_in_a_store(tmp_path: Path) -> None:
    """A store's folder needs no server."""
    file, store = make_vector(tmp_path / "v.safetensors"), tmp_path / "store"
    pushed = invoke("push", file, "--name", "acme/json", "--store", store)
    assert pushed.stdout == f"acme/json@1 sha256:{file_digest(file)}\n"
    assert invoke("push", file, "--name", "acme/json", "--store", store).stdout == pushed.stdout
    entries = json.loads(invoke("list", "--store", store, "--json").stdout)
    assert [entry["name"] for entry in entries] == ["acme/json"]
    assert file_digest(file)[:12] in invoke("list", "--store", store).stdout
    assert "deleted acme/json" in invoke("delete", "acme/json", "--store", store).stderr
    fails(invoke("delete", "acme/json", "--store", store), "no task vector 'acme/json'")
    assert json.loads(invoke("list", "--store", store, "--json").stdout) == []


def test_push_list_delete_on_a_gateway(gateway: Running, tmp_path: Path) -> None:
    """The same commands with --url."""
    file, url = make_vector(tmp_path / "v.safetensors", seed=21), gateway.url
    pushed = invoke("push", file, "--name", "cli", "--url", url)
    assert pushed.stdout == f"cli@1 sha256:{file_digest(file)}\n"
    assert "cli" in invoke("list", "--url", url).stdout
    assert invoke("delete", "cli@1", "--url", url).exit_code == 0
    fails(invoke("delete", "cli", "--url", url), "answered 404", "no task vector 'cli'")


def test_a_push_that_the_gateway_refuses_says_why(gateway: Running, tmp_path: Path) -> None:
    """The gateway's message, in one line; a file too large is not even sent."""
    foreign = make_vector(tmp_path / "f", fingerprint="f" * 64)
    fails(invoke("push", foreign, "--name", "x", "--url", gateway.url), "422", "f" * 64)
    fails(invoke("push", foreign, "--name", "a b", "--url", gateway.url), "400", "'a b'")
    large = tmp_path / "large"
    large.write_bytes(b"x" * 5_000_000)
    fails(invoke("push", large, "--name", "x", "--url", gateway.url), "413", "65536")


def test_a_gateway_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    """No traceback for what a person can mend."""
    url = f"http://127.0.0.1:{free_port()}"
    file = make_vector(tmp_path / "v")
    fails(invoke("push", file, "--name", "x", "--url", url), "cannot reach the gateway")
    fails(invoke("list", "--url", url, "--store", tmp_path), "exclude each other")


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    """Format errors read like sentences."""
    (tmp_path / "v").write_bytes(b"\x08")
    fails(invoke("push", tmp_path / "v", "--name", "x", "--store", tmp_path / "s"), "header")
    fails(invoke("inspect", tmp_path / "v"), "header")


def test_inspect_shows_what_is_in_a_file(tmp_path: Path) -> None:
    """Base, digest, metadata, and one row per kind of module."""
    file = make_vector(tmp_path / "v.safetensors")
    text = invoke("inspect", file).stdout
    for word in (file_digest(file), "b" * 64, "MIT", "\nmlp.up_proj "):
        assert word in text
    fields = json.loads(invoke("inspect", file, "--json").stdout)
    up = fields["parameters"]["model.layers.0.mlp.up_proj.weight"]
    assert fields["digest"] == f"sha256:{file_digest(file)}"
    assert (up["kind"], up["nnz"], up["shape"]) == ("sparse", 3, [8, 4])


def checkpoint(folder: Path, seed: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    tensors = {
        "model.layers.0.mlp.up_proj.weight": rng.standard_normal((8, 4)).astype(np.float32),
        "model.norm.weight": rng.standard_normal(4).astype(np.float32),
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def test_extract_writes_a_file_and_a_report(tmp_path: Path) -> None:
    """Fine-tuned minus base, with how much of it was kept."""
    base, tuned = checkpoint(tmp_path / "base", 1), checkpoint(tmp_path / "tuned", 2)
    out = tmp_path / "out.safetensors"
    result = invoke("extract", base, tuned, "-o", out, "--density", "0.25", "--dtype", "fp32")
    assert result.exit_code == 0, result.stderr
    assert re.search(r"all +2 +12 ", result.stdout)
    assert file_digest(out) in result.stdout
    assert read_header(out).parameters["model.layers.0.mlp.up_proj.weight"].nnz == 8


def test_extract_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    """A density, a dtype or a checkpoint that does not fit."""
    base, tuned = checkpoint(tmp_path / "base", 1), checkpoint(tmp_path / "tuned", 2)
    arguments = ("extract", base, tuned, "-o", tmp_path / "out")
    fails(invoke(*arguments, "--density", "2"), "--density must be", "at most 1, not 2.0")
    fails(invoke(*arguments, "--dtype", "int4"), "'int4'; choose fp32, bf16, fp16")
    save_file({"other": np.zeros(1, np.float32)}, tuned / "model.safetensors")
    fails(invoke(*arguments), "cannot be subtracted", "model.norm.weight")
    assert not (tmp_path / "out").exists()


def test_import_lora_writes_a_file(tmp_path: Path) -> None:
    """A PEFT folder becomes a low-rank task vector."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    name = "base_model.model.model.layers.0.mlp.up_proj"
    tensors = {
        f"{name}.lora_A.weight": np.ones((2, 4), np.float32),
        f"{name}.lora_B.weight": np.ones((8, 2), np.float32),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    out = tmp_path / "out.safetensors"
    result = invoke("import-lora", folder, "-o", out)
    assert result.exit_code == 0, result.stderr
    spec = read_header(out).parameters["model.layers.0.mlp.up_proj.weight"]
    assert (spec.kind, spec.rank, spec.scale) == ("low_rank", 2, 2.0)
    (folder / "adapter_config.json").write_text("{}")
    fails(invoke("import-lora", folder, "-o", out))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "./nowhere"), ("--model './nowhere'", "no such folder")),
        (("--model", ".", "--pool-bytes", "lots"), ("size 'lots'",)),
        (("--model", ".", "--composed-bytes", "0"), ("--composed-bytes 0", "positive")),
        (("--model", ".", "--compose-memory", "0"), ("--compose-memory 0", "positive")),
        (("--model", ".", "--dtype", "int8"), ("'int8'",)),
        (("--model", ".", "--", "--api-key", "x"), ("'--api-key'",)),
    ],
)
def test_serve_refuses_bad_settings(
    tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """Before anything is started."""
    fails(invoke("serve", "--store", tmp_path, *options), *words)


def test_a_repo_that_is_not_on_the_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline or wrong: the error says both what was looked for and where."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InvalidConfig, match="'nobody/nothing'; there is no such folder"):
        local_model("nobody/nothing")


def test_a_port_in_use_is_told_before_the_engine_starts(tmp_path: Path) -> None:
    """The listener is bound first."""
    port = free_port()
    with (
        listen(make_config(tmp_path, port=port)),
        pytest.raises(InvalidConfig, match=f"cannot listen on 127.0.0.1:{port}"),
    ):
        run(make_config(tmp_path, port=port))


@pytest.mark.parametrize(("auth", "is_loud"), [("open", True), (None, True), ("keys", False)])
def test_an_open_gateway_says_so_loudly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], auth: str | None, is_loud: bool
) -> None:
    """Before anything else; one with keys says how the first is made."""
    port = free_port()
    config = make_config(tmp_path, port=port, auth=auth)
    with listen(config), pytest.raises(InvalidConfig):
        run(config)
    told = capsys.readouterr().err
    assert told.startswith("OPEN no keys are asked for on 127.0.0.1") is is_loud
    hint = "then outfitter key create NAME --scope admin, both with --store "
    keyed = told.startswith("KEYS every request needs a key;")
    assert keyed is not is_loud
    assert (f"{hint}{config.store}\n" in told) is keyed


@pytest.mark.parametrize("host", ["0.0.0.0", "gpu.example"])
def test_an_open_gateway_that_others_reach_is_refused(tmp_path: Path, host: str) -> None:
    """Keys are not optional there."""
    options = ("--model", ".", "--store", tmp_path, "--host", host, "--auth", "open")
    fails(invoke("serve", *options), "--auth 'open'", f"others can reach {host}", "--auth keys")


def test_the_example_names_a_vector_of_the_store(tmp_path: Path) -> None:
    """The line that is printed when the server is ready can be pasted as it is."""
    config = make_config(tmp_path)
    with open_store(config) as vectors:
        assert some_name(vectors) is None
        invoke("push", make_vector(tmp_path / "v"), "--name", "skill", "--store", config.store)
        assert some_name(vectors) == "skill"
    assert '"task_vectors": {"skill": 1.0}' in example(config, "skill")
    assert "task_vectors" not in example(config, None)
    assert "authorization" not in example(config, None)
    keyed = example(dataclasses.replace(config, auth="keys"), None)
    assert '-H "authorization: Bearer $OUTFITTER_API_KEY"' in keyed


def test_an_unreadable_catalog_is_told_before_anything_starts(tmp_path: Path) -> None:
    """The base is not read for nothing."""
    state = {"database_url": "postgresql://127.0.0.1:9/none"}
    with pytest.raises(CatalogUnavailable):
        run(make_config(tmp_path, port=free_port(), **state))


def test_where_the_state_is_is_told_without_passwords(tmp_path: Path) -> None:
    """Logs are read by many."""
    tiers = TierSettings(redis_url="redis://:secret@r:1/0", origin_url="/mnt/all")
    config = make_config(tmp_path, database_url="postgresql://u:secret@h/d", tiers=tiers)
    line = f"store {config.store}, catalog postgresql://h/d, redis redis://r:1/0, origin /mnt/all"
    assert state_line(config) == line
    assert state_line(dataclasses.replace(config, database_url=None)).endswith(
        "catalog in it (SQLite), redis redis://r:1/0, origin /mnt/all"
    )
