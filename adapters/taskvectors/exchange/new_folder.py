"""Folders that are there wholly or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taskvectors.durable import rename, sync_directory


@contextmanager
def creating(out: str | os.PathLike[str]) -> Iterator[Path]:
    """A new folder beside `out`, renamed to it when the block ends without error.

    Raises FileExistsError, OSError unless `out` is absent or an empty folder.
    """
    target = Path(out).absolute()
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise FileExistsError(f"{out} is no folder; name another one to write to")
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f"{out} is not empty; name another folder, or remove it first")
    temporary = target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.iterdir():
            _sync(file)
        sync_directory(temporary)
        rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
