"""`outfitter push` and `pull`: task vectors to a gateway or a store, and from other places."""

import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from outfitter.commands import files
from outfitter.commands.console import byte_progress, err, printable
from outfitter.commands.drafts import (
    CardOption,
    DescriptionOption,
    LabelsOption,
    LanguagesOption,
    LicenseOption,
    TagsOption,
    draft_fields,
    publish,
)
from outfitter.commands.places import StoreOption, UrlOption, open_place
from outfitter.config import InvalidConfig, parse_size
from outfitter.transfer.fetched import Fetched
from outfitter.transfer.sources import fetch
from outfitter.trust import signatures
from taskvectors.durable import rename
from taskvectors.exchange.peft_folder import CONFIG
from taskvectors.format import file_digest, validate_file


def push(
    name: Annotated[str, typer.Option(help="What requests will call it.")],
    source: Annotated[
        Path | None, typer.Argument(help="A task vector file, or the folder of a PEFT adapter.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="The base's folder: with --finetuned, or for an adapter.")
    ] = None,
    finetuned: Annotated[
        Path | None,
        typer.Option(help="Instead of a source: a fine-tuned checkpoint, to subtract --base from."),
    ] = None,
    tag: TagsOption = None,
    license: LicenseOption = None,
    language: LanguagesOption = None,
    label: LabelsOption = None,
    description: DescriptionOption = None,
    card: CardOption = None,
    signature: Annotated[
        Path | None,
        typer.Option(help="Of the file, by `outfitter sign`.", show_default="SOURCE.sig, if any"),
    ] = None,
    sign_key: Annotated[Path | None, typer.Option(help="A private key, to sign it now.")] = None,
    method: files.MethodOption = None,
    lossless: files.LosslessOption = False,
    density: files.DensityOption = None,
    scope: files.ScopeOption = None,
    seed: files.SeedOption = None,
    epsilon: files.EpsilonOption = None,
    gamma: files.GammaOption = None,
    rank: files.RankOption = None,
    energy: files.EnergyOption = None,
    dtype: files.DtypeOption = None,
    index: files.IndexOption = "auto",
    url: UrlOption = None,
    store: StoreOption = None,
) -> None:
    """Publish a task vector under a name, on a gateway or in a store.

    From a file, from a PEFT adapter (LoRA or SHiRA), or from a pair of
    checkpoints (--base, --finetuned, and the options of `outfitter extract`).

    A push that was interrupted goes on where it stopped when it is run again.
    """
    extraction = {"density": density, "scope": scope, "seed": seed, "epsilon": epsilon}
    extraction |= {"gamma": gamma, "rank": rank, "energy": energy}
    given = [*extraction.values(), method, lossless or None]
    if finetuned is None and any(value is not None for value in given):
        raise InvalidConfig("the options of an extraction need --base and --finetuned")
    if signature is not None and sign_key is not None:
        raise InvalidConfig("--signature and --sign-key exclude each other; choose one")
    fields = draft_fields(tag, license, language, label, description, card)
    options = {**extraction, "value_dtype": dtype, "index": index, "license": None}

    def extract(target: Path) -> None:
        files.write_difference(_folder(base), _folder(finetuned), target, method, lossless, options)

    with (
        open_place(url, store) as place,
        _file_of(source, base, finetuned, dtype, extract) as file,
    ):
        found = _signature(file, signature, sign_key)
        publish(place, file, {**fields, "name": name, "signature": found})


def pull(
    source: Annotated[
        str,
        typer.Argument(
            help="hf://owner/repo@revision/file, https://host/namespace/name@3,"
            " outfitter://host/name, s3://…, gs://…, file:///… or oci:folder[:tag]."
        ),
    ],
    out_file: Annotated[
        Path | None, typer.Option("--out", "-o", help="The task vector file to write.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Publish it under this name instead.")] = None,
    tag: TagsOption = None,
    license: LicenseOption = None,
    language: LanguagesOption = None,
    label: LabelsOption = None,
    description: DescriptionOption = None,
    card: CardOption = None,
    max_bytes: Annotated[str, typer.Option(help="Largest file to accept.")] = "64GiB",
    url: UrlOption = None,
    store: StoreOption = None,
) -> None:
    """Fetch a task vector from somewhere else, to a file or under a name.

    What its source says of it (licence, card, signature, …) is published too,
    where no option says otherwise.
    """
    if (out_file is None) == (name is None):
        raise InvalidConfig("say where to: either --out FILE, or --name NAME to publish it")
    limit = parse_size(max_bytes)
    said = draft_fields(tag, license, language, label, description, card)
    if name is None:
        assert out_file is not None
        if said or url or store:
            what = next(iter(said), "url" if url else "store")
            raise InvalidConfig(f"{what} is for --name, which publishes; --out only writes a file")
        _pull_to_file(source, out_file, limit)
        return
    with open_place(url, store) as place, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pulled.safetensors"
        fetched = _fetch(source, file, limit)
        told = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(fetched.details).items()
            if value
        }
        draft = {**told, **said, "name": name, "signature": fetched.signature}
        publish(place, file, draft)
    _say_source(fetched)


def _pull_to_file(source: str, out_file: Path, limit: int) -> None:
    """The file appears when it is whole and sound."""
    temporary = out_file.with_name(f".{out_file.name[:100]}.{uuid.uuid4().hex}.part")
    try:
        fetched = _fetch(source, temporary, limit)
        validate_file(temporary)
        rename(temporary, out_file)
    finally:
        temporary.unlink(missing_ok=True)
    if fetched.signature:
        signed = out_file.with_name(f"{out_file.name}.sig")
        signed.write_text(fetched.signature, "utf-8")
    _say_source(fetched)
    files.print_file(out_file, file_digest(out_file), out_file.stat().st_size)


def _fetch(source: str, target: Path, limit: int) -> Fetched:
    with byte_progress() as bar:
        task = bar.add_task("pulling", total=None)

        def show(step: int, total: int | None) -> None:
            bar.update(task, advance=step, total=total)

        return fetch(source, target, limit=limit, allowed=None, progress=show)


def _say_source(fetched: Fetched) -> None:
    revision = f" at {fetched.revision}" if fetched.revision else ""
    line = f"pulled {fetched.source}{revision}"
    err.print(printable(line), highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _file_of(
    source: Path | None,
    base: Path | None,
    finetuned: Path | None,
    dtype: str | None,
    extract: Callable[[Path], None],
) -> Iterator[Path]:
    """The task vector file that is meant, made where it is not one yet; raises InvalidConfig."""
    if (source is None) == (finetuned is None):
        raise InvalidConfig("name a file or an adapter's folder, or --base and --finetuned")
    if source is not None and not source.is_dir():
        if base is not None or dtype is not None:
            raise InvalidConfig("--base and --dtype are for adapters and checkpoints, not files")
        if not source.is_file():
            raise InvalidConfig(f"there is no file {source}")
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "vector.safetensors"
        if source is None:
            extract(target)
        else:
            _import(source, target, base, dtype)
        yield target


def _import(source: Path, target: Path, base: Path | None, dtype: str | None) -> None:
    from taskvectors.exchange import import_adapter

    if not (source / CONFIG).is_file():
        raise InvalidConfig(
            f"{source} has no {CONFIG}; push a checkpoint with --base BASE --finetuned {source}"
        )
    files.check_float_dtype(dtype)
    import_adapter(source, target, base_dir=base, value_dtype=dtype)


def _folder(folder: Path | None) -> Path:
    if folder is None:
        raise InvalidConfig("--finetuned needs --base, the folder of what was fine-tuned")
    return folder


def _signature(file: Path, given: Path | None, key: Path | None) -> str | None:
    """Given, made now, or beside the file; raises InvalidConfig."""
    if key is not None:
        return signatures.sign(file, key)
    beside = file.with_name(f"{file.name}.sig")
    found = given or (beside if beside.is_file() else None)
    return None if found is None else signatures.read_bundle(found)
