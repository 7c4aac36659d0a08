"""PEFT folders at a source: copied file by file, imported without their say in local paths."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any, Protocol

from outfitter.errors import SourceFailed
from taskvectors.checkpoint import read_json
from taskvectors.exchange.peft_folder import CONFIG, WEIGHTS

MAX_CONFIG = 1 << 20
"""Bytes of an adapter's configuration."""
_BASE = "base_model_name_or_path"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class Copy(Protocol):
    """Copies a file of the folder at the source; raises SourceFailed beyond `limit` bytes."""

    def __call__(self, name: str, to: Path, limit: int, /) -> object:
        """Copy."""
        ...


def fetch_adapter(copy: Copy, target: Path, *, limit: int) -> None:
    """Write the task vector of a PEFT folder to `target`.

    Raises SourceFailed, UnsupportedAdapter, InvalidCheckpoint, InvalidFile, OSError.
    """
    from taskvectors.exchange import import_adapter

    with tempfile.TemporaryDirectory(prefix="outfitter-") as name:
        folder = Path(name)
        copy(CONFIG, folder / CONFIG, MAX_CONFIG)
        _rewrite_config(folder / CONFIG)
        copy(WEIGHTS, folder / WEIGHTS, limit)
        import_adapter(folder, target)
    if (size := target.stat().st_size) > limit:
        raise SourceFailed(f"the adapter is a file of {size} bytes; at most {limit} are taken")


def _rewrite_config(path: Path) -> None:
    """A base that the adapter names is a name to keep and never a folder to open."""
    fields = read_json(path)
    fields[_BASE] = _plain_base(fields.get(_BASE))
    path.write_text(json.dumps(fields))


def _plain_base(named: Any) -> Any:
    if not isinstance(named, str) or not named:
        return named
    if not _HUB_NAME.fullmatch(named):
        named = next((p for p in reversed(re.split(r"[/\\]", named)) if p.strip(".~")), "unknown")
    if Path(named).exists():
        raise SourceFailed(
            f"the adapter's base {named[:80]!r} is also a folder here, which is not read for a"
            " source; download the adapter and use `outfitter import --base`"
        )
    return named
