"""Memory of processes over a long run: samples, the line through them, a picture."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

MIB = 2**20
Sample = dict[str, Any]
"""`at`: work done so far; for each process its memory in bytes, threads, descriptors, sockets."""


def usage(process: psutil.Process) -> dict[str, int]:
    """Bytes resident, shared by who maps them (pss) and private (uss), and what is open."""
    memory = process.memory_full_info()
    return {
        "rss": memory.rss,
        "pss": memory.pss,
        "uss": memory.uss,
        "threads": process.num_threads(),
        "descriptors": process.num_fds(),
        "sockets": len(process.net_connections(kind="all")),
    }


def growth(samples: Sequence[Sample], process: str, warm_up: int) -> dict[str, float]:
    """The trend of a process's private bytes from `warm_up` on.

    Least squares, in bytes for each unit of `at`. Its standard error takes neighbouring residuals
    as related (AR(1)), which samples of memory are. The medians are of the first and last tenth.
    """
    warm = [sample for sample in samples if sample["at"] >= warm_up]
    y = [sample[process]["uss"] for sample in warm]
    slope, error = trend([sample["at"] for sample in warm], y)
    tenth = max(1, len(warm) // 10)
    first, last = statistics.median(y[:tenth]), statistics.median(y[-tenth:])
    return {
        "bytes_each": slope,
        "standard_error": error,
        "first_tenth_mib": first / MIB,
        "last_tenth_mib": last / MIB,
        "difference_mib": (last - first) / MIB,
        "peak_rss_mib": max(sample[process]["rss"] for sample in samples) / MIB,
    }


def trend(at: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """The slope of `values` over `at` by least squares, and its standard error; see `growth`."""
    x, y = np.array(at, dtype=float), np.array(values, dtype=float)
    slope, intercept = np.polyfit(x, y, 1)
    return float(slope), _standard_error(x, y - slope * x - intercept)


def _standard_error(x: np.ndarray, residuals: np.ndarray) -> float:
    """Of the slope: the usual one, widened by the first autocorrelation of the residuals."""
    spread = float(np.sum((x - x.mean()) ** 2))
    energy = float(residuals @ residuals)
    if energy == 0 or len(x) < 3:
        return 0.0
    related = min(0.99, max(0.0, float(residuals[1:] @ residuals[:-1]) / energy))
    plain = (energy / (len(x) - 2) / spread) ** 0.5
    return float(plain * ((1 + related) / (1 - related)) ** 0.5)


def plot(path: Path, panels: Mapping[str, Sequence[Sample]], processes: Sequence[str]) -> None:
    """Each process's private memory in MiB against the work done; a panel each, by its label."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(9, 3.4), sharey=True, squeeze=False)
    for axis, (label, samples) in zip(axes[0], panels.items(), strict=True):
        for process in processes:
            seen = [sample for sample in samples if process in sample]
            memory = [sample[process]["uss"] / MIB for sample in seen]
            axis.plot([sample["at"] for sample in seen], memory, label=process)
        axis.set(xlabel=label, ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("private memory, MiB")
    axes[0][-1].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
