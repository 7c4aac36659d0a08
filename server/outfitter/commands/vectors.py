"""`outfitter push`, `list` and `delete`: on a running gateway, or directly in a store's folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from outfitter.client import GatewayClient
from outfitter.commands.console import byte_progress, err, human_bytes, out
from outfitter.config import InvalidConfig
from outfitter.schemas import describe
from outfitter.vectors import Vectors
from taskvectors.spec import Reference
from taskvectors.store import DirectoryStore

DEFAULT_URL = "http://127.0.0.1:8000"

UrlOption = Annotated[
    str | None, typer.Option(help=f"A running gateway.  [default: {DEFAULT_URL}]")
]
StoreOption = Annotated[Path | None, typer.Option(help="A store's folder, instead of --url.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def push(
    file: Annotated[Path, typer.Argument(help="A task vector file.", exists=True, dir_okay=False)],
    name: Annotated[str, typer.Option(help="What requests will call it.")],
    url: UrlOption = None,
    store: StoreOption = None,
) -> None:
    """Give a task vector file to a gateway or a store, under a name."""
    answer = _place(url, store).push(file, name)
    digest = str(answer["digest"])
    out.print(f"{answer['name']}@{answer['version']} {digest}", highlight=False, soft_wrap=True)


def list_vectors(
    url: UrlOption = None, store: StoreOption = None, as_json: JsonOption = False
) -> None:
    """List the task vectors of a gateway or a store."""
    entries = _place(url, store).entries()
    if as_json:
        typer.echo(json.dumps(entries, indent=2))
        return
    table = Table("name", "version", "digest", "size", "density", "base", box=None)
    for entry in entries:
        density, base = f"{entry['density']:.2%}", entry["base"]["name"] or "-"
        digest, size = entry["digest"][7:19], human_bytes(entry["bytes"])
        table.add_row(entry["name"], str(entry["version"]), digest, size, density, base)
    out.print(table)


def delete(
    reference: Annotated[str, typer.Argument(help="name, namespace/name or name@version.")],
    url: UrlOption = None,
    store: StoreOption = None,
) -> None:
    """Remove a name, or one version of it, from a gateway or a store."""
    _place(url, store).delete(reference)
    err.print(f"deleted {reference}", highlight=False, markup=False)


@dataclass(frozen=True)
class _Remote:
    """A gateway, with a progress bar."""

    url: str

    def push(self, file: Path, name: str) -> dict[str, Any]:
        with byte_progress() as bar:
            task = bar.add_task(f"pushing {file.name}", total=file.stat().st_size)
            client = GatewayClient(self.url)
            return client.push(file, name, lambda step: bar.advance(task, step))

    def entries(self) -> list[dict[str, Any]]:
        return GatewayClient(self.url).entries()

    def delete(self, reference: str) -> None:
        GatewayClient(self.url).delete(reference)


@dataclass(frozen=True)
class _Local:
    """A store's folder."""

    store: Path

    def push(self, file: Path, name: str) -> dict[str, Any]:
        vectors = Vectors(DirectoryStore(self.store))
        version = vectors.store.assign(name, vectors.store.add(file))
        return describe(vectors.entry(Reference.parse(f"{name}@{version}")))

    def entries(self) -> list[dict[str, Any]]:
        return [describe(entry) for entry in Vectors(DirectoryStore(self.store)).entries()]

    def delete(self, reference: str) -> None:
        DirectoryStore(self.store).remove(Reference.parse(reference))


def _place(url: str | None, store: Path | None) -> _Remote | _Local:
    if url is not None and store is not None:
        raise InvalidConfig("--url and --store exclude each other; choose one")
    return _Local(store) if store is not None else _Remote(url or DEFAULT_URL)
