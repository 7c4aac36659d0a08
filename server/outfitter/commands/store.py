"""`outfitter store stats`, `gc`, `check` and `quarantine`: what a store holds, and its care."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from outfitter.client import GatewayClient
from outfitter.commands.console import count_progress, err, human_bytes, out, printable
from outfitter.commands.options import LocalStore
from outfitter.commands.places import DEFAULT_URL, StoreOption, UrlOption
from outfitter.config import InvalidConfig, parse_seconds
from taskvectors.errors import TaskVectorError

store = typer.Typer(help="Look after a store.", no_args_is_help=True)

MAX_REASON = 4096
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
FolderOption = Annotated[
    Path, typer.Option("--store", help="The store's folder.", exists=True, file_okay=False)
]
_COLUMNS = ("hits", "misses", "errors", "corrupt", "evictions")


@store.command()
def stats(url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show what the tiers and the pool of a gateway have done."""
    with GatewayClient(url or DEFAULT_URL) as client:
        found = client.json("GET", "/v1/store/stats")
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    out.print(_tier_table(found))
    for line in _lines(found):
        out.print(Text(line), soft_wrap=True)


@store.command()
def gc(
    url: UrlOption = None,
    folder: StoreOption = None,
    grace: Annotated[str, typer.Option(help="Younger files stay, such as 30m.")] = "1h",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Drop the files that no version and no saved loadout needs."""
    grace_s = parse_seconds(grace)
    if url is not None and folder is not None:
        raise InvalidConfig("--url and --store exclude each other; choose one")
    if folder is not None:
        with LocalStore.of(folder).open() as vectors:
            found: Mapping[str, Any] = asdict(vectors.collect(grace_s, dry_run))
    else:
        with GatewayClient(url or DEFAULT_URL) as client:
            body = {"grace_s": grace_s, "dry_run": dry_run}
            found = client.json("POST", "/v1/store/gc", json=body)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for digest in found["digests"]:
        out.print(Text(f"sha256:{digest}"), soft_wrap=True)
    word = "would be dropped" if dry_run else "dropped"
    line = f"{len(found['digests'])} files ({human_bytes(found['nbytes'])}) {word}"
    err.print(f"{line}, {found['kept']} kept", highlight=False)
    if found["failed"]:
        err.print(f"{len(found['failed'])} could not be dropped from every tier", highlight=False)
        raise typer.Exit(1)


@store.command()
def check(folder: FolderOption) -> None:
    """Read every file again; damaged ones go into quarantine and are fetched anew."""
    healed, lost = 0, 0
    with LocalStore.of(folder).open() as vectors, count_progress() as bar:
        files = sorted(vectors.store.files(), key=lambda file: file.digest)
        task = bar.add_task("checking files", total=len(files))
        for file in files:
            try:
                if vectors.files.heal(file.digest):
                    healed += 1
                    out.print(Text(f"sha256:{file.digest} healed"), soft_wrap=True)
            except TaskVectorError as error:
                lost += 1
                out.print(
                    Text(f"sha256:{file.digest} lost: {printable(str(error))}"), soft_wrap=True
                )
            bar.advance(task)
    err.print(f"{len(files)} files read: {healed} healed, {lost} lost", highlight=False)
    if lost:
        raise typer.Exit(1)


@store.command()
def quarantine(folder: FolderOption, as_json: JsonOption = False) -> None:
    """List the files that failed a check, and why."""
    kept = sorted((folder / "quarantine").glob("*.bin"))
    rows: list[dict[str, Any]] = [
        {"file": str(path), "bytes": _size(path), "reason": _reason(path)} for path in kept
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        size = human_bytes(row["bytes"])
        out.print(Text(f"{row['file']} ({size}): {printable(str(row['reason']))}"), soft_wrap=True)
    err.print(f"{len(rows)} files in quarantine", highlight=False)


def _tier_table(found: Mapping[str, Any]) -> Table:
    table = Table("process", "tier", *_COLUMNS, "read", "seconds", "held", "budget", "up", box=None)
    for process in ("gateway", "engine"):
        for tier, numbers in (found[process].get("tiers") or {}).items():
            counts = [str(numbers[column]) for column in _COLUMNS]
            read, seconds = human_bytes(numbers["read_bytes"]), f"{numbers['seconds']:.2f}"
            sizes = [_bytes(numbers["nbytes"]), _bytes(numbers["budget"])]
            is_up = "yes" if numbers["is_up"] else "no"
            table.add_row(process, tier, *counts, read, seconds, *sizes, is_up)
    return table


def _lines(found: Mapping[str, Any]) -> list[str]:
    """What is no tier, in sentences."""
    engine, catalog, changes = found["engine"], found["catalog"], found["changes"]
    lines = ["engine: away"]
    if engine["is_up"] and (pool := engine.get("pool")):
        lines = [
            f"pool: {pool['vectors']} vectors, {_bytes(pool['nbytes'])} of"
            f" {_bytes(pool['budget'])}, {pool['loads']} loads, {pool['evictions']} evictions,"
            f" {pool['waiting']} waiting"
        ]
    lines.append(
        f"catalog: generation {catalog['generation']}" if catalog["is_up"] else "catalog: away"
    )
    heard = "connected" if changes["is_connected"] else "lost"
    lines.append(f"changes: {heard if changes['is_configured'] else 'no Redis'}")
    kept = found["quarantine"]
    lines.append(f"quarantine: {kept['files']} files, {_bytes(kept['nbytes'])}")
    return [*lines, f"uploads in progress: {found['uploads']['in_progress']}"]


def _bytes(value: int | None) -> str:
    return "-" if value is None else human_bytes(value)


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _reason(path: Path) -> str:
    with (
        suppress(OSError),
        path.with_suffix(".txt").open(encoding="utf-8", errors="replace") as file,
    ):
        return file.read(MAX_REASON).strip()
    return "unknown"
