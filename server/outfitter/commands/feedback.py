"""`outfitter feedback`: say what answers were worth, one by one or from a file."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from outfitter.client import GatewayClient
from outfitter.commands.console import err
from outfitter.commands.places import DEFAULT_URL, UrlOption
from outfitter.config import InvalidConfig
from outfitter.control.experiments.feedback import FIELDS, MAX_LINES, Feedback
from outfitter.errors import ApiError

feedback = typer.Typer(help="Say what answers were worth, for experiments.", no_args_is_help=True)
PATH = "/v1/feedback"
_BATCH = MAX_LINES // 2
_LINES = {"content-type": "application/jsonl"}


@feedback.command()
def send(
    request_id: Annotated[str, typer.Argument(help="The x-request-id of the answer.")],
    metric: Annotated[str, typer.Argument(help="Such as helpful.")],
    value: Annotated[float | None, typer.Option(help="A number.")] = None,
    label: Annotated[str | None, typer.Option(help="A word, instead of a number.")] = None,
    feedback_id: Annotated[
        str | None, typer.Option("--id", help="Tells several of one metric apart.")
    ] = None,
    url: UrlOption = None,
) -> None:
    """Say something of one answer; once more replaces it."""
    given = {"request_id": request_id, "metric": metric, "value": value, "label": label}
    body = {name: told for name, told in {**given, "id": feedback_id}.items() if told is not None}
    Feedback.parse(body)
    with GatewayClient(url or DEFAULT_URL) as gateway:
        gateway.json("POST", PATH, json=body)
    err.print("1 received")


@feedback.command("import")
def import_(
    file: Annotated[
        Path,
        typer.Argument(
            help="JSON lines, or CSV with a line of headings: request_id, metric, value, …",
            exists=True,
            dir_okay=False,
        ),
    ],
    url: UrlOption = None,
) -> None:
    """Send a whole file; sent again, it changes nothing."""
    rows, received = _rows(file), 0
    with GatewayClient(url or DEFAULT_URL) as gateway:
        while batch := list(islice(rows, _BATCH)):
            content = "".join(json.dumps(row) + "\n" for row in batch)
            found = gateway.json("POST", PATH, content=content.encode(), headers=_LINES)
            received += int(found.get("received", 0))
    err.print(f"{received:,} received")


def _rows(file: Path) -> Iterator[Mapping[str, Any]]:
    """Each row as JSON. Raises InvalidConfig, which names the line."""
    with file.open(encoding="utf-8-sig", newline="") as opened:
        is_csv = file.suffix.lower() == ".csv"
        for number, given in _from_csv(opened) if is_csv else _from_json(opened):
            try:
                Feedback.parse(given)
            except ApiError as error:
                raise InvalidConfig(f"{file} line {number}: {error.message}") from error
            yield given


def _from_json(opened: io.TextIOBase) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(opened, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise InvalidConfig(f"line {number} is no JSON: {line[:80]!r}") from error


def _from_csv(opened: io.TextIOBase) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(opened)
    unknown = [name for name in reader.fieldnames or () if name not in FIELDS]
    if unknown:
        raise InvalidConfig(f"unknown heading {unknown[0]!r}; choose {', '.join(FIELDS)}")
    for row in reader:
        given: dict[str, Any] = {name: text for name, text in row.items() if text}
        if "value" in given:
            given["value"] = _number(given["value"], reader.line_num)
        yield reader.line_num, given


def _number(text: str, line: int) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InvalidConfig(f"line {line}: value must be a number, not {text[:80]!r}") from error
