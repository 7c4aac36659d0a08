"""A worker process beside a server: it yields, stays within its memory and ends with its parent."""

import contextlib
import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

NICENESS = 10
_PR_SET_PDEATHSIG = 1


def become_harmless(parent: int, memory_bytes: int) -> None:
    """Yield to others, be the first to go when memory is short, and end with the parent.

    parent: its process id; exits at once if it is gone. memory_bytes: beyond them, MemoryError.
    """
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before it could be followed
        sys.exit(1)
