"""Where commands find task vectors: on a running gateway, or directly in a store's folder."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from starlette.datastructures import QueryParams

from outfitter.client import KEY_VARIABLE, GatewayClient, GatewayRefused
from outfitter.commands.options import LocalStore
from outfitter.config import InvalidConfig
from outfitter.opening import cache_home
from outfitter.routes.task_vectors import query_of
from outfitter.schemas import describe, describe_deletion, draft_of
from outfitter.state.records import Version
from outfitter.uploading import Uploading
from outfitter.vectors import Vectors
from taskvectors.format import file_digest
from taskvectors.spec import Reference

DEFAULT_URL = "http://127.0.0.1:8000"

UrlOption = Annotated[
    str | None,
    typer.Option(
        help=f"A running gateway; {KEY_VARIABLE} has the key for it.  [default: {DEFAULT_URL}]"
    ),
]
StoreOption = Annotated[
    Path | None, typer.Option("--store", help="A store's folder, instead of --url.")
]

Step = Callable[[int], None]


class Place(Protocol):
    """What commands need of either; answers are those of the gateway's routes."""

    def push(self, file: Path, draft: Mapping[str, object], progress: Step) -> dict[str, Any]:
        """Publish a file. draft: the fields of `POST /v1/task_vectors?upload=`."""
        ...

    def find(self, query: Mapping[str, str | int]) -> dict[str, Any]:
        """A page of the listing. query: as for `GET /v1/task_vectors`."""
        ...

    def show(self, reference: str) -> dict[str, Any]:
        """What a reference stands for."""
        ...

    def card(self, reference: str) -> str | None:
        """Its card."""
        ...

    def tag(self, reference: str, tag: str) -> dict[str, Any]:
        """Let a tag point at what a reference stands for now."""
        ...

    def untag(self, name: str, tag: str) -> None:
        """Take a tag away."""
        ...

    def delete(self, reference: str) -> dict[str, Any]:
        """Forget a name, or one version of it."""
        ...


@contextmanager
def open_place(url: str | None, store: Path | None) -> Iterator[Place]:
    """The gateway or the store that the options name; raises InvalidConfig."""
    if url is not None and store is not None:
        raise InvalidConfig("--url and --store exclude each other; choose one")
    if store is None:
        with GatewayClient(url or DEFAULT_URL) as client:
            yield _Remote(client)
        return
    with LocalStore.of(store).open() as vectors:
        yield _Local(vectors)


class _Remote:
    def __init__(self, client: GatewayClient) -> None:
        self._client = client
        self.find, self.show = client.find, client.show
        self.tag, self.delete = client.tag, client.delete

    def push(self, file: Path, draft: Mapping[str, object], progress: Step) -> dict[str, Any]:
        return Uploading(self._client, file, cache_home() / "uploads", progress).publish(draft)

    def card(self, reference: str) -> str | None:
        try:
            return self._client.card(reference)
        except GatewayRefused as error:
            if error.code == "no_card":
                return None
            raise

    def untag(self, name: str, tag: str) -> None:
        self._client.untag(name, tag)


class _Local:
    """The same answers from `outfitter.vectors`."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors

    def push(self, file: Path, draft: Mapping[str, object], progress: Step) -> dict[str, Any]:
        path = self._vectors.store.new_upload()
        try:
            shutil.copyfile(file, path)
            progress(path.stat().st_size)
            version = self._vectors.publish(path, file_digest(path), draft_of(draft), base=None)
            return describe(version)
        finally:
            path.unlink(missing_ok=True)

    def find(self, query: Mapping[str, str | int]) -> dict[str, Any]:
        params = QueryParams({key: str(value) for key, value in query.items()})
        page = self._vectors.find(query_of(params))
        rows = [describe(version) for version in page.versions]
        return {"data": rows, "has_more": page.after is not None, "after": page.after}

    def show(self, reference: str) -> dict[str, Any]:
        return describe(self._version(reference))

    def card(self, reference: str) -> str | None:
        return self._version(reference).details.card

    def tag(self, reference: str, tag: str) -> dict[str, Any]:
        return describe(self._vectors.tag(Reference.parse(reference), tag))

    def untag(self, name: str, tag: str) -> None:
        self._vectors.untag(name, tag)

    def delete(self, reference: str) -> dict[str, Any]:
        deletion = self._vectors.delete(Reference.parse(reference))
        return describe_deletion(reference, deletion)

    def _version(self, reference: str) -> Version:
        return self._vectors.version(Reference.parse(reference))
