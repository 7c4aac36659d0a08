"""`outfitter keygen`, `sign` and `verify`: signatures of task vector files, offline."""

from pathlib import Path
from typing import Annotated

import typer

from outfitter.commands.console import err, out
from outfitter.config import InvalidConfig
from outfitter.trust import signatures

FileArgument = Annotated[
    Path, typer.Argument(help="A task vector file.", exists=True, dir_okay=False)
]


def keygen(
    name: Annotated[str, typer.Option("--out", "-o", help="Writes OUT.key and OUT.pub.")],
) -> None:
    """Make a pair of keys: the private one signs, the public one goes into a trust policy.

    They are elliptic-curve keys (P-256) as PEM, not encrypted; keys that are
    there are not overwritten.
    """
    private, public = Path(f"{name}.key"), Path(f"{name}.pub")
    signatures.generate(private, public)
    err.print(f"{private} signs: keep it secret. {public} verifies.", highlight=False, markup=False)


def sign(
    file: FileArgument,
    key: Annotated[Path, typer.Option(help="The private key.")],
    out_file: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Where to write it.", show_default="FILE.sig"),
    ] = None,
) -> None:
    """Sign a task vector file; `outfitter push` takes the signature along."""
    target = out_file or file.with_name(f"{file.name}.sig")
    if target.resolve() in (file.resolve(), key.resolve()):
        raise InvalidConfig(f"--out {target} would overwrite what is signed; choose another file")
    target.write_text(signatures.sign(file, key), "utf-8")
    err.print(f"wrote {target}", highlight=False, markup=False)


def verify(
    file: FileArgument,
    signature: Annotated[
        Path | None, typer.Option(help="The signature.", show_default="FILE.sig")
    ] = None,
    key: Annotated[list[Path], typer.Option(help="A public key; may be given again.")] = [],  # noqa: B006
) -> None:
    """Check that one of the keys signed a task vector file."""
    if not key:
        raise InvalidConfig("give at least one public key: --key acme.pub")
    bundle = signatures.read_bundle(signature or file.with_name(f"{file.name}.sig"))
    signer = signatures.verify(file, bundle, key)
    out.print(f"{file} is signed by {signer}", highlight=False, markup=False, soft_wrap=True)
