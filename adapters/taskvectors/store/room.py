"""A full disk, said in the store's own words."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from taskvectors.errors import StoreFull

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def needing_room(what: str) -> Iterator[None]:
    """Raise StoreFull where the block ends because the disk or a quota is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise StoreFull(
            f"no room for {what}: {error.strerror}; make room on the store's disk and try again"
        ) from error
