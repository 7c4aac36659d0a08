"""The command line of Outfitter."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from outfitter.client import GatewayError
from outfitter.commands import (
    access,
    bench,
    export,
    feedback,
    files,
    imports,
    interference,
    keys,
    merge,
    oci,
    promotions,
    results,
    saved,
    serve,
    sign,
    store,
    tenants,
    transfers,
    tune,
    usage,
    vectors,
)
from outfitter.commands.console import printable
from outfitter.config import InvalidConfig
from outfitter.errors import ApiError
from taskvectors import __version__
from taskvectors.errors import TaskVectorError

EXPECTED = (TaskVectorError, InvalidConfig, GatewayError, ApiError, OSError)
"""What a person can mend: told in one line, without a traceback."""


class _Commands(TyperGroup):
    """The group of commands; expected errors end in one clear line and status 1."""

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
app.command()(serve.serve)
app.command()(files.extract)
app.command("import")(imports.import_adapter)
app.command("import-lora", hidden=True)(imports.import_adapter)
app.command()(files.inspect)
app.command()(interference.interference)
app.command()(merge.merge)
app.command()(export.export)
app.command()(transfers.push)
app.command()(transfers.pull)
app.command("list")(vectors.list_vectors)
app.command()(vectors.search)
app.command()(vectors.show)
app.command()(vectors.tag)
app.command()(vectors.untag)
app.command()(vectors.delete)
app.command()(bench.bench)
app.command()(promotions.promote)
app.command()(promotions.demote)
app.command()(usage.usage)
app.command(cls=tune.ManyVectors)(tune.tune)
app.command()(sign.keygen)
app.command()(sign.sign)
app.command()(sign.verify)
app.command()(access.access)
app.add_typer(tenants.tenant, name="tenant")
app.add_typer(keys.key_commands, name="key")
app.add_typer(oci.oci, name="oci")
app.add_typer(store.store, name="store")
app.add_typer(saved.loadout, name="loadout")
app.add_typer(feedback.feedback, name="feedback")
app.add_typer(results.experiment, name="experiment")


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
