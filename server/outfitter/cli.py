"""The command line of Outfitter.

A command's module is imported when the command is asked for: most of them only speak to a gateway,
and start in a quarter of the time that all imports take.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from outfitter.client import GatewayError
from outfitter.commands.console import printable
from outfitter.config import InvalidConfig
from outfitter.errors import ApiError
from taskvectors import __version__
from taskvectors.errors import TaskVectorError

EXPECTED = (TaskVectorError, InvalidConfig, GatewayError, ApiError, OSError)
"""What a person can mend: told in one line, without a traceback."""


@dataclass(frozen=True)
class _Source:
    """Where a command is: a function of a module of `outfitter.commands`, or a group of commands.

    kind: of a function, the name of the class that parses its arguments.
    """

    module: str
    name: str
    kind: str | None = None
    is_hidden: bool = False

    def command(self, name: str) -> Any:
        """The command, as `name`."""
        module = import_module(f"outfitter.commands.{self.module}")
        found = getattr(module, self.name)
        if not isinstance(found, typer.Typer):
            kind = TyperCommand if self.kind is None else getattr(module, self.kind)
            alone = typer.Typer(add_completion=False)
            alone.command(name, cls=kind, hidden=self.is_hidden)(found)
            found = alone
        command = typer.main.get_command(found)
        command.name = name
        return command


_SOURCES: dict[str, _Source] = {
    "serve": _Source("serve", "serve"),
    "extract": _Source("files", "extract"),
    "import": _Source("imports", "import_adapter"),
    "import-lora": _Source("imports", "import_adapter", is_hidden=True),
    "inspect": _Source("files", "inspect"),
    "interference": _Source("interference", "interference"),
    "merge": _Source("merge", "merge"),
    "export": _Source("export", "export"),
    "push": _Source("transfers", "push"),
    "pull": _Source("transfers", "pull"),
    "list": _Source("vectors", "list_vectors"),
    "search": _Source("vectors", "search"),
    "show": _Source("vectors", "show"),
    "tag": _Source("vectors", "tag"),
    "untag": _Source("vectors", "untag"),
    "delete": _Source("vectors", "delete"),
    "bench": _Source("bench", "bench"),
    "promote": _Source("promotions", "promote"),
    "demote": _Source("promotions", "demote"),
    "usage": _Source("usage", "usage"),
    "tune": _Source("tune", "tune", "ManyVectors"),
    "keygen": _Source("sign", "keygen"),
    "sign": _Source("sign", "sign"),
    "verify": _Source("sign", "verify"),
    "access": _Source("access", "access"),
    "tenant": _Source("tenants", "tenant"),
    "key": _Source("keys", "key_commands"),
    "oci": _Source("oci", "oci"),
    "store": _Source("store", "store"),
    "loadout": _Source("saved", "loadout"),
    "feedback": _Source("feedback", "feedback"),
    "experiment": _Source("results", "experiment"),
}


class _Found(Mapping[str, Any]):
    """Commands by name, each imported when it is looked at."""

    def __getitem__(self, name: str) -> Any:
        return _SOURCES[name].command(name)

    def __iter__(self) -> Iterator[str]:
        return iter(_SOURCES)

    def __len__(self) -> int:
        return len(_SOURCES)


class _Commands(TyperGroup):
    """The group of commands; expected errors end in one clear line and status 1."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands: Any = _Found()

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except EXPECTED as error:
            typer.echo(f"error: {printable(str(error))}", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Commands,
    help="Serve many custom models from one resident base: task vectors, mixed per request.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"outfitter {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The entry point of the `outfitter` command."""
    app()
