"""`outfitter keygen`, `sign` and `verify`, as a person types them."""

from pathlib import Path

import typer
from typer.testing import CliRunner

from outfitter.commands import sign
from outfitter.trust import signatures
from tests.outfitter.trust.conftest import DATA

app = typer.Typer()
for command in (sign.keygen, sign.sign, sign.verify):
    app.command()(command)


def _run(*args: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    return result.exit_code, result.output + (str(result.exception) if result.exception else "")


def test_a_file_is_signed_and_verified(tmp_path: Path) -> None:
    """The signature lies beside the file unless told otherwise."""
    file = tmp_path / "json.safetensors"
    file.write_bytes(DATA)
    assert _run("keygen", "--out", tmp_path / "acme")[0] == 0
    assert _run("sign", file, "--key", tmp_path / "acme.key")[0] == 0
    assert (tmp_path / "json.safetensors.sig").is_file()
    status, text = _run("verify", file, "--key", tmp_path / "acme.pub")
    assert (status, "acme.pub" in text) == (0, True)
    file.write_bytes(DATA + b"x")
    status, text = _run("verify", file, "--key", tmp_path / "acme.pub")
    assert (status, "no trusted key signed" in text) == (1, True)


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    """Keys are not overwritten, nor is the file; a key and a signature must be there."""
    file = tmp_path / "json.safetensors"
    file.write_bytes(DATA)
    signatures.generate(tmp_path / "acme.key", tmp_path / "acme.pub")
    for args, why in (
        (("keygen", "--out", tmp_path / "acme"), "not overwritten"),
        (("sign", file, "--key", tmp_path / "acme.key", "-o", file), "overwrite"),
        (("sign", file, "--key", tmp_path / "acme.pub"), "as a private key"),
        (("verify", file), "at least one public key"),
        (("verify", file, "--key", tmp_path / "acme.pub"), "cannot read the signature"),
    ):
        status, text = _run(*args)
        assert status == 1
        assert why in text
    assert file.read_bytes() == DATA
