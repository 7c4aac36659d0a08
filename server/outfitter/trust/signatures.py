"""Signatures of task vector files: model-signing bundles, by elliptic-curve keys, offline.

A bundle signs the sha256 of one file, whatever the file is called: so a digest is all that it
takes to verify one.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outfitter.config import InvalidConfig
from outfitter.errors import UntrustedVector
from taskvectors.errors import VectorNotFound
from taskvectors.format import file_digest

MAX_BUNDLE = 64 << 10
"""Bytes; the bundle of one file has about two thousand."""


def sign(file: Path, key_path: Path) -> str:
    """The bundle, as JSON, that signs `file`; raises InvalidConfig for a key that cannot sign."""
    signing = _library().signing
    if not file.is_file():
        raise VectorNotFound(f"there is no file {file}")
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=key_path)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InvalidConfig(_bad_key(key_path, "private", error)) from error
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle.sig"
        config.sign(file.resolve(), bundle)
        return bundle.read_text("utf-8")


def verify(subject: Path | str, bundle: str, keys: Sequence[Path]) -> Path:
    """The key that signed `subject`, a file or the digest of one; raises UntrustedVector."""
    digest = file_digest(subject) if isinstance(subject, Path) else subject
    _check_size(bundle)
    reasons = []
    for key in keys:
        try:
            _verify(digest, bundle, key)
        except UntrustedVector as error:
            reasons.append(f"{key.name}: {error}")
        else:
            return key
    raise UntrustedVector(
        f"no trusted key signed sha256:{digest}: {'; '.join(reasons) or 'no key is given'}"
    )


def check_public_key(key: Path) -> None:
    """Raise InvalidConfig unless `key` is a public key that verifies."""
    _verifier(key)


def generate(private: Path, public: Path) -> None:
    """Write a new pair of P-256 keys as PEM; raises InvalidConfig rather than overwrite."""
    _library()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    known = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _write_new(public, known, 0o644)
    try:
        _write_new(private, secret, 0o600)
    except BaseException:
        public.unlink()
        raise


def read_bundle(path: Path) -> str:
    """The text of a signature file; raises InvalidConfig."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BUNDLE + 1)
        text = data.decode("utf-8")
    except (OSError, ValueError) as error:
        raise InvalidConfig(f"cannot read the signature {path}: {error}") from error
    _check_size(text)
    return text


def _library() -> Any:
    """model-signing, which takes long to import and need not be installed."""
    try:
        import model_signing.signing
        import model_signing.verifying
    except ImportError as error:
        raise InvalidConfig(
            f"signatures need model-signing ({error}); install it with:"
            " pip install 'outfitter[signing]'"
        ) from error
    return model_signing


def _verifier(key: Path) -> Any:
    config = _library().verifying.Config()
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return config.use_elliptic_key_verifier(public_key=key)
    except (OSError, ValueError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
        raise InvalidConfig(_bad_key(key, "public", error)) from error


def _verify(digest: str, bundle: str, key: Path) -> None:
    """Let the library verify; whatever it trips over in a hostile bundle is a bad signature."""
    verifier = _verifier(key).set_hashing_config(_known_digest(digest))
    from cryptography.exceptions import InvalidSignature

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle.sig"
        path.write_text(bundle, "utf-8", "replace")
        try:
            verifier.verify(Path(folder) / digest, path)
        except InvalidSignature as error:
            raise UntrustedVector("the signature is forged or damaged") from error
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UntrustedVector(_reason(error)) from error


def _reason(error: Exception) -> str:
    """What the library's error means, in a few words."""
    why = " ".join(str(error).split())
    if why.startswith("Key mismatch"):
        return "another key signed it"
    if why.startswith("Signature mismatch"):
        is_folder = "Missing files" in why
        return f"the signature is of {'a folder: sign the file' if is_folder else 'another file'}"
    return f"the signature cannot be read: {type(error).__name__}: {why[:200]}"


def _known_digest(digest: str) -> Any:
    """A way of hashing that reads no file and follows no path: the digest is known."""
    from model_signing import hashing, manifest

    class Known(hashing.Config):  # type: ignore[misc]
        def hash(self, model_path: Path, **_files_to_hash: object) -> Any:
            known = hashing.hashing.Digest("sha256", bytes.fromhex(digest))
            itself = manifest.FileManifestItem(path=Path("."), digest=known)
            return manifest.Manifest(model_path.name, [itself], self._serializer)

        def add_ignored_paths(self, **_paths: object) -> None:
            pass

    return Known()


def _check_size(bundle: str) -> None:
    if len(bundle) > MAX_BUNDLE or len(bundle.encode("utf-8", "replace")) > MAX_BUNDLE:
        raise UntrustedVector(f"the signature has more than {MAX_BUNDLE} bytes")


def _bad_key(key: Path, kind: str, error: Exception) -> str:
    return (
        f"cannot use {key} as a {kind} key: {str(error)[:200]}; give a PEM file with an unencrypted"
        " elliptic-curve key, such as `outfitter keygen` writes"
    )


def _write_new(path: Path, data: bytes, mode: int) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise InvalidConfig(f"{path} is there already; keys are not overwritten") from error
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        os.fsync(file.fileno())
