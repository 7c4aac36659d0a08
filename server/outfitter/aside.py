"""Work on large bodies, done beside the event loop so that other requests go on meanwhile."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TypeVar

AT_ONCE_BYTES = 2**18
"""Of a body up to here the loop does all itself, within a few milliseconds."""
MAX_THREADS = 2

T = TypeVar("T")


class Aside:
    """A few threads of their own, so that large bodies wait for each other and nobody else does."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MAX_THREADS, "bodies")

    async def run(self, nbytes: int, work: Callable[..., T], *args: object) -> T:
        """What `work(*args)` returns or raises. nbytes: of the body that it is about."""
        if nbytes <= AT_ONCE_BYTES:
            return work(*args)
        call = partial(copy_context().run, work, *args)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def close(self) -> None:
        """Begin nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
