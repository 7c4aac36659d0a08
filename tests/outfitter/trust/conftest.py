"""A signed file, and the keys of two parties."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from outfitter.trust import signatures

DATA = bytes(range(256)) * 40


@dataclass(frozen=True)
class Signed:
    """A file that `acme` signed; `other` is somebody else."""

    folder: Path
    file: Path
    digest: str
    bundle: str
    acme: Path
    other: Path

    def bundle_of(self, data: bytes, signer: str = "acme") -> str:
        """Another file's bundle, by a signer."""
        path = self.folder / "another.safetensors"
        path.write_bytes(data)
        return signatures.sign(path, self.folder / f"{signer}.key")


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    """Made anew for each test."""
    file = tmp_path / "json.safetensors"
    file.write_bytes(DATA)
    for name in ("acme", "other"):
        signatures.generate(tmp_path / f"{name}.key", tmp_path / f"{name}.pub")
    return Signed(
        tmp_path,
        file,
        hashlib.sha256(DATA).hexdigest(),
        signatures.sign(file, tmp_path / "acme.key"),
        tmp_path / "acme.pub",
        tmp_path / "other.pub",
    )
