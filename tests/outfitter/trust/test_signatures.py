"""A signature is of bytes, whatever their file is called; a forged bundle is refused."""

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from outfitter.config import InvalidConfig
from outfitter.errors import UntrustedVector
from outfitter.trust import signatures
from tests.outfitter.trust.conftest import DATA, Signed

STOCK = Path(sys.executable).with_name("model_signing")


def test_the_file_or_its_digest_is_enough(signed: Signed) -> None:
    """A store calls the file by its digest; its bundle stays good."""
    assert signatures.verify(signed.file, signed.bundle, [signed.acme]) == signed.acme
    assert signatures.verify(signed.digest, signed.bundle, [signed.acme]) == signed.acme
    renamed = signed.file.rename(signed.folder / f"{signed.digest}.safetensors")
    assert signatures.verify(renamed, signed.bundle, [signed.acme]) == signed.acme


def test_any_of_several_keys_will_do(signed: Signed) -> None:
    """It is told which one."""
    assert signatures.verify(signed.digest, signed.bundle, [signed.other, signed.acme]) == (
        signed.acme
    )


@pytest.mark.parametrize("position", [0, len(DATA) // 2, len(DATA) - 1])
def test_one_changed_byte_is_noticed(signed: Signed, position: int) -> None:
    """Wherever it is."""
    data = bytearray(DATA)
    data[position] ^= 1
    signed.file.write_bytes(data)
    with pytest.raises(UntrustedVector, match=r"acme\.pub: the signature is of another file"):
        signatures.verify(signed.file, signed.bundle, [signed.acme])


def test_another_key_or_none_is_not_enough(signed: Signed) -> None:
    """Each key is named with its reason."""
    with pytest.raises(UntrustedVector, match=r"other\.pub: another key signed it"):
        signatures.verify(signed.digest, signed.bundle, [signed.other])
    with pytest.raises(UntrustedVector, match="no key is given"):
        signatures.verify(signed.digest, signed.bundle, [])


def test_a_hint_alone_proves_nothing(signed: Signed) -> None:
    """Who claims another's key still has to have it."""
    forged = json.loads(signed.bundle_of(DATA, "other"))
    hint = json.loads(signed.bundle)["verificationMaterial"]
    forged["verificationMaterial"] = hint
    with pytest.raises(UntrustedVector, match="forged or damaged"):
        signatures.verify(signed.digest, json.dumps(forged), [signed.acme])


def test_a_good_bundle_of_another_file_is_refused(signed: Signed) -> None:
    """Signatures cannot be moved."""
    with pytest.raises(UntrustedVector, match="is of another file"):
        signatures.verify(signed.digest, signed.bundle_of(b"else"), [signed.acme])


def _envelope(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    """A change of what is signed, the signature left as it was."""

    def apply(bundle: dict[str, Any]) -> None:
        payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        change(payload)
        text = json.dumps(payload).encode()
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(text).decode()

    return apply


@pytest.mark.parametrize(
    "change",
    [
        _envelope(lambda p: p["predicate"]["resources"][0].update(digest="00" * 32)),
        _envelope(lambda p: p["predicate"]["resources"].append({})),
        _envelope(lambda p: p["predicate"]["serialization"].update(ignore_paths=["../../etc"])),
        _envelope(lambda p: p["subject"][0].update(name="x")),
        lambda b: b["dsseEnvelope"].update(payloadType="text/plain"),
        lambda b: b["dsseEnvelope"].update(signatures=[]),
        lambda b: b["dsseEnvelope"]["signatures"][0].update(sig="AAAA"),
        lambda b: b["dsseEnvelope"]["signatures"][0].update(sig=None),
        lambda b: b["dsseEnvelope"].update(payload="!!"),
        lambda b: b.update(mediaType="application/json"),
        lambda b: b.pop("dsseEnvelope"),
        lambda b: b.pop("verificationMaterial"),
        lambda b: b.update(verificationMaterial={"publicKey": None}),
        lambda b: b.update(verificationMaterial={"certificate": {"rawBytes": "AAAA"}}),
        lambda b: b.update(verificationMaterial=[]),
        lambda b: b.update(messageSignature={"signature": "AAAA"}),
    ],
    ids=range(16),
)
def test_a_changed_bundle_is_refused(
    signed: Signed, change: Callable[[dict[str, Any]], object]
) -> None:
    """Whatever the library makes of it, the answer is no."""
    bundle = json.loads(signed.bundle)
    change(bundle)
    with pytest.raises(UntrustedVector):
        signatures.verify(signed.digest, json.dumps(bundle), [signed.acme])


@pytest.mark.parametrize(
    "bundle",
    ["", "{", "null", "[]", '"x"', "[" * 50_000, "\ud800", "1e9999", "x" * 70_000, "ä" * 40_000],
    ids=lambda text: ascii(text[:8]),
)
def test_what_is_no_bundle_is_refused(signed: Signed, bundle: str) -> None:
    """Bounded and without recursion."""
    with pytest.raises(UntrustedVector) as caught:
        signatures.verify(signed.digest, bundle, [signed.acme])
    assert len(str(caught.value)) < 500


def test_paths_in_a_signed_bundle_are_not_followed(
    signed: Signed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder's bundle names files: nothing is looked up, and it is not one file's."""
    folder = signed.folder / "model"
    folder.mkdir()
    (folder / "json.safetensors").write_bytes(DATA)
    bundle = _stock_sign(folder, signed)
    monkeypatch.setattr(Path, "glob", None)
    with pytest.raises(UntrustedVector, match="is of a folder"):
        signatures.verify(signed.digest, bundle, [signed.acme])


def _stock_sign(path: Path, signed: Signed) -> str:
    target = signed.folder / "stock.sig"
    command = [str(STOCK), "sign", "key", str(path), "--private_key"]
    command += [str(signed.acme.with_suffix(".key")), "--signature", str(target)]
    subprocess.run(command, check=True, capture_output=True)
    return target.read_text()


def test_a_bundle_of_the_stock_command_verifies_here(signed: Signed) -> None:
    """By the file and by its digest."""
    bundle = _stock_sign(signed.file, signed)
    assert signatures.verify(signed.file, bundle, [signed.acme]) == signed.acme
    with pytest.raises(UntrustedVector):
        signatures.verify("00" * 32, bundle, [signed.acme])


@pytest.mark.parametrize(("damage", "status"), [(b"", 0), (b"x", 1)])
def test_a_bundle_of_ours_verifies_with_the_stock_command(
    signed: Signed, damage: bytes, status: int
) -> None:
    """And fails there once the file is another."""
    sig = signed.folder / "ours.sig"
    sig.write_text(signed.bundle)
    signed.file.write_bytes(DATA + damage)
    command = [str(STOCK), "verify", "key", str(signed.file), "--signature", str(sig)]
    done = subprocess.run([*command, "--public_key", str(signed.acme)], capture_output=True)
    assert done.returncode == status, done.stderr


def test_keys_are_private_and_not_overwritten(signed: Signed) -> None:
    """Neither half of a pair is lost to a second run."""
    assert (signed.folder / "acme.key").stat().st_mode & 0o777 == 0o600
    before = signed.acme.read_bytes()
    for key in ("acme.key", "new.key"):
        with pytest.raises(InvalidConfig, match="not overwritten"):
            signatures.generate(signed.folder / key, signed.acme)
    assert signed.acme.read_bytes() == before
    with pytest.raises(InvalidConfig, match="not overwritten"):
        signatures.generate(signed.folder / "acme.key", signed.folder / "new.pub")
    assert not (signed.folder / "new.pub").exists()


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN PRIVATE KEY-----", b"\x00" * 100])
def test_a_key_that_is_none_is_told(signed: Signed, content: bytes | None) -> None:
    """For signing and for verifying."""
    key = signed.folder / "bad.pem"
    if content is not None:
        key.write_bytes(content)
    with pytest.raises(InvalidConfig, match="as a private key"):
        signatures.sign(signed.file, key)
    with pytest.raises(InvalidConfig, match="as a public key"):
        signatures.check_public_key(key)


def test_a_key_of_another_kind_is_told(signed: Signed) -> None:
    """Only elliptic curves of NIST sign here."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    for key in (ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256K1())):
        pem = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (signed.folder / "odd.pub").write_bytes(pem)
        with pytest.raises(InvalidConfig, match="elliptic-curve"):
            signatures.check_public_key(signed.folder / "odd.pub")


def test_without_the_library_it_is_told_what_to_install(
    signed: Signed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an extra."""
    for name in ("model_signing", "model_signing.signing", "model_signing.verifying"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InvalidConfig, match=r"outfitter\[signing\]"):
        signatures.check_public_key(signed.acme)


def test_importing_the_gateway_does_not_import_the_library() -> None:
    """It takes a second, which only those pay who sign."""
    code = "import sys, outfitter.trust.policy; sys.exit('model_signing' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
