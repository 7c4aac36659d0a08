"""Run one command and watch its time and memory."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

_INTERVAL = 0.01


@dataclass(frozen=True)
class Usage:
    """seconds: on the clock; cpu_seconds: user and system, all threads. Peaks in MiB.

    peak_rss_mib: the kernel's VmHWM (ru_maxrss would count the process that forked, too);
    peak_anonymous_mib: of RssAnon, what cannot be dropped: not the pages of mapped files. Sampled.
    """

    seconds: float
    cpu_seconds: float
    peak_rss_mib: float
    peak_anonymous_mib: float

    def fields(self) -> dict[str, float]:
        """Rounded, for JSON."""
        return {name: round(value, 2) for name, value in asdict(self).items()}


def watch(command: Sequence[str], environment: Mapping[str, str], timeout: float) -> Usage | None:
    """Run `command` to its end; None when it takes longer. Raises RuntimeError when it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    peaks = {"VmHWM": 0.0, "RssAnon": 0.0}
    while True:
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
        seconds = time.perf_counter() - started
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            break
        if seconds > timeout:
            process.kill()
            process.wait()
            return None
        for name, mib in _memory(process.pid).items():
            peaks[name] = max(peaks.get(name, 0.0), mib)
        time.sleep(_INTERVAL)
    if process.returncode:
        raise RuntimeError(f"{Path(command[0]).name} ended with status {process.returncode}")
    cpu_seconds = used.ru_utime + used.ru_stime
    return Usage(seconds, cpu_seconds, peaks["VmHWM"], peaks["RssAnon"])


def _memory(pid: int) -> dict[str, float]:
    """VmHWM and RssAnon in MiB; nothing of a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    fields = (line.split() for line in lines)
    return {f[0][:-1]: int(f[1]) / 1024 for f in fields if f[0] in ("VmHWM:", "RssAnon:")}
