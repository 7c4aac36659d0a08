"""`outfitter oci` on a store and on a gateway, as a person types it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from outfitter.cli import app
from tests import services
from tests.outfitter.harness import Running, make_vector
from tests.outfitter.transfer import registries

real = pytest.mark.skipif(
    registries.PROGRAM is None, reason="no registry program: apt-get install docker-registry"
)


def _run(*args: object) -> str:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    return result.output


def _signed(folder: Path) -> Path:
    file = make_vector(folder / "json.safetensors")
    _run("keygen", "--out", folder / "acme")
    _run("sign", file, "--key", folder / "acme.key")
    return file


def test_a_layout_carries_everything_from_store_to_store(tmp_path: Path) -> None:
    """Licence, languages, labels, description and signature arrive; the digest is the same."""
    file, store, other = _signed(tmp_path), tmp_path / "a", tmp_path / "b"
    about = ["--license", "mit or isc", "--language", "en", "--label", "x", "--description", "It."]
    _run("push", file, "--name", "acme/json", *about, "--store", store)
    assert "json-1" in _run("oci", "export", "acme/json", tmp_path / "layout", "--store", store)
    _run("pull", f"oci:{tmp_path / 'layout'}:json-1", "--name", "acme/json", "--store", other)
    before, after = (
        json.loads(_run("show", "acme/json", "--json", "--store", place))
        for place in (store, other)
    )
    for changing in ("created_at", "downloads"):
        before.pop(changing), after.pop(changing)
    assert before == after
    assert (after["license"], after["is_signed"]) == ("MIT OR ISC", True)


def test_a_gateway_and_its_store_give_the_same_artefact(
    gateway: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte: the digest of the manifest is the same."""
    for name, value in services.environment(gateway.config.store.parent).items():
        monkeypatch.setenv(name, value)  # the state of that gateway, not of this test
    file = _signed(tmp_path)
    _run("push", file, "--name", "acme/json", "--license", "mit", "--url", gateway.url)
    url = _run("oci", "export", "acme/json", tmp_path / "a", "--tag", "t", "--url", gateway.url)
    store = gateway.config.store
    local = _run("oci", "export", "acme/json", tmp_path / "b", "--tag", "t", "--store", store)
    assert url.split()[-1] == local.split()[-1]


@real
def test_a_registry_is_pushed_to_and_pulled_from(tmp_path: Path) -> None:
    """The file and its signature come back as they were."""
    file, store = _signed(tmp_path), tmp_path / "store"
    _run("push", file, "--name", "acme/json", "--store", store)
    with registries.registry(tmp_path / "registry") as host:
        _run("oci", "push", "acme/json@1", f"{host}/acme/json:1", "--store", store)
        _run("oci", "pull", f"{host}/acme/json:1", "--out", tmp_path / "got.safetensors")
        _run("pull", f"oci://{host}/acme/json:1", "--name", "b", "--store", tmp_path / "b")
    assert (tmp_path / "got.safetensors").read_bytes() == file.read_bytes()
    assert "is signed by" in _run(
        "verify", tmp_path / "got.safetensors", "--key", tmp_path / "acme.pub"
    )


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    """In one line."""
    for args, why in (
        (("export", "json", tmp_path / "x", "--url", "http://h", "--store", tmp_path), "exclude"),
        (("export", "gone", tmp_path / "x", "--store", tmp_path / "s"), "gone"),
        (("push", "json", "no place", "--store", tmp_path / "s"), "invalid place"),
        (("pull", "no place", "--out", tmp_path / "x"), "invalid place"),
    ):
        result = CliRunner().invoke(app, ["oci", *(str(arg) for arg in args)])
        assert result.exit_code == 1
        assert why in result.output
    assert not (tmp_path / "x").exists()
