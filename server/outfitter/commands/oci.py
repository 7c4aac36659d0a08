"""`outfitter oci export`, `push` and `pull`: OCI artefacts, in folders and registries."""

import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from outfitter.client import GatewayClient
from outfitter.commands.console import byte_progress, err, out, printable
from outfitter.commands.files import print_file
from outfitter.commands.options import LocalStore
from outfitter.commands.places import DEFAULT_URL, StoreOption, UrlOption
from outfitter.config import InvalidConfig, parse_size
from outfitter.state.records import FileFacts, Version
from outfitter.transfer import sources
from outfitter.transfer.fetched import Progress
from outfitter.transfer.modelpack import default_tag
from outfitter.transfer.oci import export_layout
from outfitter.transfer.registry import Place, fetch
from outfitter.transfer.registry import push as push_to_registry
from taskvectors.durable import rename
from taskvectors.format import file_digest, validate_file
from taskvectors.spec import Reference

oci = typer.Typer(
    help="Task vectors as OCI artefacts: in a folder, or in a registry.", no_args_is_help=True
)

ReferenceArgument = Annotated[
    str, typer.Argument(help="name, namespace/name, name@3, name@stable or sha256:….")
]
PlaceArgument = Annotated[str, typer.Argument(help="Such as ghcr.io/acme/json:3.")]
PlainOption = Annotated[
    bool, typer.Option("--plain-http", help="Without TLS, as registries on this machine are.")
]


@oci.command()
def export(
    reference: ReferenceArgument,
    folder: Annotated[Path, typer.Argument(help="An OCI image layout, made if need be.")],
    tag: Annotated[
        str | None, typer.Option(help="In the layout.", show_default="NAME-VERSION")
    ] = None,
    url: UrlOption = None,
    store: StoreOption = None,
) -> None:
    """Add a version to an OCI image layout; `outfitter pull oci:FOLDER:TAG` reads it.

    The file, its card and its signature, by the ModelPack specification.
    """
    with _found(reference, url, store) as (version, file), _bar("exporting") as progress:
        digest = export_layout(version, file, folder, tag, progress)
    tag = default_tag(version) if tag is None else tag
    out.print(
        f"{printable(str(folder))}:{tag} sha256:{digest}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


@oci.command()
def push(
    reference: ReferenceArgument,
    place: PlaceArgument,
    plain_http: PlainOption = False,
    url: UrlOption = None,
    store: StoreOption = None,
) -> None:
    """Upload a version to an OCI registry, with the login of `docker login`."""
    to = Place.parse(place)
    with _found(reference, url, store) as (version, file), _bar("pushing") as progress:
        digest = push_to_registry(version, file, to, plain_http=plain_http, progress=progress)
    out.print(f"{to} sha256:{digest}", highlight=False, markup=False, soft_wrap=True)


@oci.command()
def pull(
    place: PlaceArgument,
    out_file: Annotated[Path, typer.Option("--out", "-o", help="The task vector file to write.")],
    max_bytes: Annotated[str, typer.Option(help="Largest file to accept.")] = "64GiB",
    plain_http: PlainOption = False,
) -> None:
    """Fetch the task vector file of an artefact, and its signature, from an OCI registry.

    `outfitter pull oci://HOST/REPOSITORY:TAG --name NAME` publishes it.
    """
    limit = parse_size(max_bytes)
    url = f"oci://{Place.parse(place)}"
    part = out_file.with_name(f".{out_file.name[:100]}.{uuid.uuid4().hex}.part")
    try:
        with _bar("pulling") as progress:
            found = fetch(url, part, limit=limit, progress=progress, plain_http=plain_http)
        validate_file(part)
        rename(part, out_file)
    finally:
        part.unlink(missing_ok=True)
    if found.signature is not None:
        out_file.with_name(f"{out_file.name}.sig").write_text(found.signature, "utf-8")
    line = f"pulled {found.source} at {found.revision}"
    err.print(printable(line), highlight=False, markup=False, soft_wrap=True)
    print_file(out_file, file_digest(out_file), out_file.stat().st_size)


@contextmanager
def _found(reference: str, url: str | None, store: Path | None) -> Iterator[tuple[Version, Path]]:
    """A version and its file, from a gateway or a store; raises InvalidConfig."""
    if url is not None and store is not None:
        raise InvalidConfig("--url and --store exclude each other; choose one")
    if store is None:
        with tempfile.TemporaryDirectory() as folder:
            yield _downloaded(reference, url or DEFAULT_URL, Path(folder) / "file.safetensors")
        return
    with LocalStore.of(store).open() as vectors:
        version = vectors.version(Reference.parse(reference))
        yield version, vectors.path(version.digest)


def _downloaded(reference: str, url: str, target: Path) -> tuple[Version, Path]:
    with GatewayClient(url) as client:
        entry = client.show(reference)
    exact = f"{entry['name']}@{entry['version']}"
    with _bar("fetching") as progress:
        source = f"{url.rstrip('/')}/{exact}"
        found = sources.fetch(source, target, limit=entry["bytes"], allowed=None, progress=progress)
    version = Version(
        name=entry["name"],
        version=entry["version"],
        facts=_facts(entry),
        details=found.details,
        created=entry["created_at"],
        publisher=entry["publisher"],
        downloads=entry["downloads"],
        tags=tuple(entry["tags"]),
        signature=found.signature,
    )
    return version, target


def _facts(entry: Mapping[str, Any]) -> FileFacts:
    nnz, density = entry["nnz"], entry["density"]
    return FileFacts(
        digest=entry["digest"].removeprefix("sha256:"),
        size=entry["bytes"],
        base_name=entry["base"]["name"],
        base_fingerprint=entry["base"]["fingerprint"],
        parameters=entry["parameters"],
        nnz=nnz,
        numel=round(nnz / density) if density else 0,
        method=entry["method"],
    )


@contextmanager
def _bar(what: str) -> Iterator[Progress]:
    with byte_progress() as bar:
        task = bar.add_task(what, total=None)
        yield lambda step, total: bar.update(task, advance=step, total=total)
