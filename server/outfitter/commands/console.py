"""Where commands write: results to standard output, everything else to standard error."""

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

WIDE = 160
"""Columns for tables where no terminal says how many it has, such as a pipe."""


def _result_console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


out = _result_console()
err = Console(stderr=True)


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
