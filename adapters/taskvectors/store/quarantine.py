"""Where files go that failed a check: kept for a look, within a budget, never served.

`quarantine/<time>-<random>.bin` and beside it `….txt`, which says why.
"""

import logging
import time
import uuid
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

BUDGET = 1 << 30
MAX_FILES = 1000
MAX_REASON = 2000


class Quarantine:
    """The quarantine of one store. Every method may be called by many threads and processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, path: Path, reason: str, budget: int = BUDGET) -> None:
        """Move a file here, whatever it is; the oldest go beyond `budget` bytes. Raises OSError."""
        size = path.lstat().st_size
        if size > budget or path.is_symlink() or not path.is_file():
            path.unlink(missing_ok=True)
            return
        self._folder.mkdir(exist_ok=True)
        kept = self._folder / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.bin"
        path.replace(kept)
        kept.chmod(0o400)
        with suppress(OSError):  # the disk may be full, and the reason is in the log
            kept.with_suffix(".txt").write_text(f"{path.name}: {reason[:MAX_REASON]}\n", "utf-8")
        log.warning("%s is in quarantine as %s: %s", path.name, kept.name, reason[:MAX_REASON])
        self._evict(budget)

    def _evict(self, budget: int) -> None:
        total = 0
        for position, path in enumerate(sorted(self._folder.glob("*.bin"), reverse=True)):
            with suppress(FileNotFoundError):
                total += path.stat().st_size
            if total > budget or position >= MAX_FILES:
                path.unlink(missing_ok=True)
                path.with_suffix(".txt").unlink(missing_ok=True)
