"""Where commands write: results to standard output, everything else to standard error."""

from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

WIDE = 160
"""Columns for tables where no terminal says how many it has, such as a pipe."""


def printable(text: str) -> str:
    """A file or an argument may hold what would steer a terminal: a ? for each such character."""
    return "".join(c if c.isprintable() else "?" for c in text)


class _SafeConsole(Console):
    """Prints every text, also those in tables, as `printable` lines."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Without control characters, except for the ends of lines."""
        return super().render_str("\n".join(map(printable, text.split("\n"))), **options)


def _result_console() -> Console:
    console = _SafeConsole()
    return console if console.is_terminal else _SafeConsole(width=WIDE)


out = _result_console()
err = _SafeConsole(stderr=True)


def say(line: str) -> None:
    """A sentence to the person, beside the result; never wrapped, never styled."""
    err.print(printable(line), highlight=False, markup=False, soft_wrap=True)


def byte_progress() -> Progress:
    """A bar in bytes, with the rate."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return _progress(*columns)


def count_progress() -> Progress:
    """A bar in things, such as parameters."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return _progress(*columns)


def _progress(*columns: ProgressColumn) -> Progress:
    """A bar that goes away when it is done; nothing where nobody looks."""
    text = TextColumn("{task.description}")
    return Progress(text, *columns, console=err, transient=True, disable=not err.is_terminal)


def human_bytes(size: float) -> str:
    """`1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
