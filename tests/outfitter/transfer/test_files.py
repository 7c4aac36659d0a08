"""Plain files and PEFT folders, on this machine and in a bucket that speaks S3."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import fsspec
import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from safetensors.numpy import save_file

from outfitter.errors import SourceFailed
from outfitter.transfer.sources import fetch
from taskvectors.checkpoint import Checkpoint
from taskvectors.errors import InvalidCheckpoint, InvalidReference, UnsupportedAdapter
from taskvectors.exchange import import_adapter
from taskvectors.format import file_digest, read_header
from tests.outfitter.harness import make_vector

LIMIT = 10**6


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The name of a bucket on a server of its own; the environment says where it is."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="vectors")
        fsspec.filesystem("s3").clear_instance_cache()
        yield "vectors"
        fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


def adapter(folder: Path, base: str | None = "acme/base", **settings: object) -> Path:
    """A LoRA as PEFT saves it."""
    folder.mkdir(parents=True)
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"]}
    fields |= {"base_model_name_or_path": base, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    name = "base_model.model.model.layers.0.mlp.up_proj"
    rng = np.random.default_rng(5)
    tensors = {
        f"{name}.lora_A.weight": rng.standard_normal((2, 4)).astype(np.float32),
        f"{name}.lora_B.weight": rng.standard_normal((8, 2)).astype(np.float32),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def refused(
    url: str, folder: Path, why: str, limit: int = LIMIT, kind: type = SourceFailed
) -> None:
    folder.mkdir(exist_ok=True)
    with pytest.raises(kind, match=why):
        fetch(url, folder / "target", limit=limit, allowed=None)
    assert list(folder.iterdir()) == []


def test_a_local_file_is_copied(tmp_path: Path) -> None:
    """Its name may be percent-encoded."""
    file = make_vector(tmp_path / "my vector.safetensors")
    fetched = fetch(file.as_uri(), tmp_path / "t", limit=LIMIT, allowed=None)
    assert (tmp_path / "t").read_bytes() == file.read_bytes()
    assert fetched.revision == f"sha256:{file_digest(file)}"
    assert fetched.name is None  # "my vector" is no name


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A folder without an adapter, a pipe that would block, a device without an end."""
    empty = tmp_path / "empty"
    refused((tmp_path / "no.safetensors").as_uri(), empty, "No such file")
    os.mkfifo(tmp_path / "pipe.safetensors")
    refused((tmp_path / "pipe.safetensors").as_uri(), empty, "no regular file")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    refused((tmp_path / "zero.safetensors").as_uri(), empty, "no regular file")
    (tmp_path / "folder.safetensors").mkdir()
    refused((tmp_path / "folder.safetensors").as_uri(), empty, "no regular file|directory")
    refused(tmp_path.as_uri(), empty, "adapter_config.json: No such file")


def test_a_file_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    """Before it is copied."""
    file = make_vector(tmp_path / "v.safetensors")
    refused(file.as_uri(), tmp_path / "e", "at most 10 are taken", limit=10)


@pytest.mark.parametrize("url", ["v.safetensors", "ssh://host/v", "C:\\v.safetensors", "://x", ""])
def test_an_unknown_scheme_is_told_the_choices(url: str, tmp_path: Path) -> None:
    """A plain path too: a source is a URL."""
    refused(url, tmp_path / "e", "hf:.*s3:.*oci:", kind=InvalidReference)


def test_a_peft_folder_is_imported(tmp_path: Path) -> None:
    """As `outfitter import` does it, byte for byte."""
    folder = adapter(tmp_path / "legal")
    fetched = fetch(folder.as_uri(), tmp_path / "t", limit=LIMIT, allowed=None)
    assert file_digest(tmp_path / "t") == import_adapter(folder, tmp_path / "expected")
    assert read_header(tmp_path / "t").base.name == "acme/base"
    assert (fetched.name, fetched.revision) == ("legal", None)


def test_an_adapter_opens_no_folder_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says its base is stays a name; elsewhere `import` would open that checkpoint."""
    secret = tmp_path / "secret"
    secret.mkdir()
    real_open = Checkpoint.open
    (secret / "config.json").write_text("{}")

    def watched(folder: Path, **options: str) -> Checkpoint:
        assert Path(folder).resolve() != secret
        return real_open(folder, **options)

    monkeypatch.setattr(Checkpoint, "open", watched)
    for number, named in enumerate((str(secret), f"{tmp_path}/x/../secret", "../" * 9 + "etc")):
        folder = adapter(tmp_path / f"adapter-{number}", named)
        target = tmp_path / f"target-{number}"
        fetch(folder.as_uri(), target, limit=LIMIT, allowed=None)
        assert read_header(target).base.name in ("secret", "etc")
    monkeypatch.chdir(tmp_path)
    refused(adapter(tmp_path / "near", "secret").as_uri(), tmp_path / "e", "also a folder here")


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    """Weights are safetensors, or there are none."""
    folder = adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    refused(folder.as_uri(), tmp_path / "e", "adapter_model.safetensors: No such file")


def test_a_broken_adapter_is_refused(tmp_path: Path) -> None:
    """Its configuration, its kind, its weights, its size."""
    empty = tmp_path / "e"
    kind = adapter(tmp_path / "kind", peft_type="IA3")
    refused(kind.as_uri(), empty, "choose LORA, SHIRA", kind=UnsupportedAdapter)
    no_json = adapter(tmp_path / "json")
    (no_json / "adapter_config.json").write_text("[")
    refused(no_json.as_uri(), empty, "cannot read", kind=InvalidCheckpoint)
    large = adapter(tmp_path / "large", junk="x" * (1 << 20))
    refused(large.as_uri(), empty, "at most 1048576 are taken")
    refused(adapter(tmp_path / "limit").as_uri(), empty, "at most 100 are taken", limit=100)


def test_a_bucket_holds_files_and_folders(bucket: str, tmp_path: Path) -> None:
    """Over real S3 requests."""
    file = make_vector(tmp_path / "v.safetensors")
    folder = adapter(tmp_path / "legal")
    client = boto3.client("s3")
    client.upload_file(str(file), bucket, "team/v.safetensors")
    for part in folder.iterdir():
        client.upload_file(str(part), bucket, f"team/legal/{part.name}")
    steps: list = []
    fetched = fetch(
        f"s3://{bucket}/team/v.safetensors",
        tmp_path / "t",
        limit=LIMIT,
        allowed=[f"s3://{bucket}/team"],
        progress=lambda *step: steps.append(step),
    )
    assert fetched.revision == f"sha256:{file_digest(file)}"
    assert steps == [(file.stat().st_size, file.stat().st_size)]
    fetch(f"s3://{bucket}/team/legal", tmp_path / "l", limit=LIMIT, allowed=None)
    assert file_digest(tmp_path / "l") == import_adapter(folder, tmp_path / "expected")


def test_a_bucket_that_lacks_it_says_so(bucket: str, tmp_path: Path) -> None:
    """Neither file nor bucket; and a file that is too large is not read."""
    refused(f"s3://{bucket}/no.safetensors", tmp_path / "e", "there is no such file")
    refused("s3://nobody-has-this/no.safetensors", tmp_path / "e", "cannot read s3://nobody")
    boto3.client("s3").put_object(Bucket=bucket, Key="large.safetensors", Body=b"x" * 5000)
    refused(f"s3://{bucket}/large.safetensors", tmp_path / "e", "at most 99", limit=99)


def test_a_missing_driver_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extra, or the package."""
    refused("gs://bucket/v.safetensors", tmp_path / "e", "pip install 'gcsfs'")
    refused("az://bucket/v.safetensors", tmp_path / "e", "pip install 'adlfs'")

    def missing(*_: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.filesystem", missing)
    refused("s3://bucket/v.safetensors", tmp_path / "e", r"pip install 'outfitter\[s3\]'")
