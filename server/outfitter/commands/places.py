"""Where commands find task vectors: on a running gateway, or directly in a store's folder."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from outfitter.client import KEY_VARIABLE, GatewayClient, GatewayRefused
from outfitter.commands.options import LocalStore
from outfitter.config import InvalidConfig, cache_home

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
    from outfitter.commands.local_place import local_place  # with all that a gateway needs

    with LocalStore.of(store).open() as vectors:
        yield local_place(vectors)


class _Remote:
    def __init__(self, client: GatewayClient) -> None:
        self._client = client
        self.find, self.show = client.find, client.show
        self.tag, self.delete = client.tag, client.delete

    def push(self, file: Path, draft: Mapping[str, object], progress: Step) -> dict[str, Any]:
        from outfitter.uploading import Uploading  # which reads files, unlike the others

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
