"""The engine's guard: a tiny process between the gateway and vLLM that leaves nothing behind.

Usage: `python guard.py DIRECTORY COMMAND…`, with a pipe from the gateway as standard input.
vLLM starts children of its own, which survive when only vLLM is killed. The guard gives them a
process group and adopts their orphans. It ends them all when vLLM exits, on SIGTERM, and when
the pipe closes, which the kernel does however the gateway dies. DIRECTORY is the gateway's, which
starts further engines in it; when the gateway is gone, the guard removes it. Standard library
only; Linux makes it airtight.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

TERM_GRACE_S = 20.0
"""How long vLLM may take to stop by itself after SIGTERM."""
ORPHAN_GRACE_S = 3.0
"""The same, when the gateway is gone."""
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(directory: str, command: list[str]) -> int:
    """Run `command`; returns its exit status once every descendant is gone."""
    wake = _wake_on_signals()
    prctl = _prctl()
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # Should somebody kill the guard itself, the kernel kills vLLM.
    child = subprocess.Popen(  # noqa: S603
        command,
        stdin=subprocess.DEVNULL,
        process_group=0,
        preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    grace = _wait(child, wake)
    if grace is not None:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace)
    if _is_gateway_gone():
        shutil.rmtree(directory, ignore_errors=True)
    _kill_descendants(child.pid)
    return child.returncode if child.returncode is not None else -signal.SIGKILL


def _prctl() -> Callable[[int, int], int]:
    if not sys.platform.startswith("linux"):
        return lambda option, value: 0  # noqa: ARG005
    function = ctypes.CDLL(None, use_errno=True).prctl
    return lambda option, value: int(function(option, value, 0, 0, 0))


def _wake_on_signals() -> int:
    """A descriptor that becomes readable when SIGTERM or SIGCHLD arrives."""
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda number, frame: None)  # noqa: ARG005
    return readable


def _wait(child: "subprocess.Popen[bytes]", wake: int) -> float | None:
    """Wait for an end: None when the child exited, else the grace that it is given."""
    while child.poll() is None:
        ready, _, _ = select.select([wake, sys.stdin], [], [], 5.0)
        if wake in ready and signal.SIGTERM in os.read(wake, 4096):
            return TERM_GRACE_S
        if sys.stdin in ready and _is_gateway_gone():
            return ORPHAN_GRACE_S
    return None


def _is_gateway_gone() -> bool:
    """Whether the pipe, into which nobody ever writes, is closed."""
    ready, _, _ = select.select([sys.stdin], [], [], 0)
    return bool(ready) and not os.read(sys.stdin.fileno(), 4096)


def _kill_descendants(group: int) -> None:
    """SIGKILL whatever is left, again and again as orphans arrive, until nobody is."""
    while True:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        for pid in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.02)


def _children() -> list[int]:
    """Pids whose parent is this process, also those that left vLLM's process group."""
    children: list[int] = []
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else []:
        with contextlib.suppress(OSError, ValueError):
            if entry.isdigit() and _parent(entry) == os.getpid():
                children.append(int(entry))
    return children


def _parent(pid: str) -> int:
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return int(file.read().rpartition(")")[2].split()[1])


if __name__ == "__main__":
    status = main(sys.argv[1], sys.argv[2:])
    sys.exit(status if status >= 0 else 128 - status)
