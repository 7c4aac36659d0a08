"""What the adapter folders of PEFT have in common (PEFT 0.21, `peft/utils/save_and_load.py`)."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from taskvectors.checkpoint import Checkpoint
from taskvectors.delta import VALUE_DTYPES, Array
from taskvectors.errors import InvalidCheckpoint, UnsupportedAdapter
from taskvectors.exchange.tensor_file import Table, write_tensors

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."

_TRANSPOSED = ("c_attn", "c_proj", "c_fc", "q_attn")
"""Layers that store their weight as [in, out] in GPT-2 and its kin."""


def find_base(
    fields: Mapping[str, Any], base_dir: str | os.PathLike[str] | None
) -> Checkpoint | None:
    """The base: given, or the folder that the configuration names; None where neither is."""
    if base_dir is not None:
        return Checkpoint.open(base_dir)
    named = _named(fields)
    return Checkpoint.open(named) if named and Path(named).is_dir() else None


def base_name(fields: Mapping[str, Any], base: Checkpoint | None) -> str:
    """The Hub name as the adapter gives it; of a local path only the last component."""
    named = _named(fields)
    if base is not None and (not named or Path(named).is_dir() or Path(named).is_absolute()):
        return base.directory.resolve().name
    return Path(named).name if Path(named).is_absolute() else named


def check_output(out: Path, *inputs: Checkpoint | None) -> None:
    """Raise FileExistsError where writing `out` would destroy what is read."""
    for folder in inputs:
        if folder is not None and out.exists() and any(map(out.samefile, folder.files)):
            raise FileExistsError(f"{out} holds weights of {folder.directory}; choose another name")


def _named(fields: Mapping[str, Any]) -> str:
    """The base's name or path, or nothing; raises UnsupportedAdapter for what is no text."""
    named = fields.get("base_model_name_or_path")
    if named is not None and not isinstance(named, str):
        raise UnsupportedAdapter(f"base_model_name_or_path must be a text, not {str(named)[:80]!r}")
    return named or ""


def as_value(array: Array) -> Array:
    """In a dtype that a task vector may have."""
    return array if array.dtype in VALUE_DTYPES else array.astype(np.float32)


def check_copy_of_base(name: str, stored: Array, base: Checkpoint | None) -> None:
    """PEFT may save whole embeddings beside its own: fine while they are the base's own.

    Raises UnsupportedAdapter.
    """
    if base is None:
        raise UnsupportedAdapter(f"{name} is saved whole; give the base to compare it with")
    tied = base.is_tied and name == "lm_head.weight"
    own = next((n for n in base.names if tied and n.endswith("embed_tokens.weight")), name)
    try:
        unchanged = np.array_equal(base.read(own).astype(stored.dtype), stored)
    except InvalidCheckpoint:
        unchanged = False
    if not unchanged:
        raise UnsupportedAdapter(f"{name} is saved whole and differs from the base's")


def is_embedding(module: str) -> bool:
    """True for a table of tokens, by its name."""
    last = module.rpartition(".")[2]
    return "embed" in last or last == "wte"


def check_linear(name: str) -> str:
    """The module whose weight `name` is; raises UnsupportedAdapter where PEFT cannot adapt it."""
    module, _, leaf = name.rpartition(".")
    if leaf != "weight":
        raise UnsupportedAdapter(f"{name} is no weight, so PEFT cannot hold it; {OTHERWISE}")
    if module.rpartition(".")[2] in _TRANSPOSED:
        raise UnsupportedAdapter(f"{name} may be stored transposed, as in GPT-2; {OTHERWISE}")
    return module


OTHERWISE = "export --to checkpoint instead"


def write_folder(
    folder: Path, fields: Mapping[str, Any], table: Table, blocks: Iterable[tuple[str, Array]]
) -> None:
    """The configuration and the tensors of an adapter."""
    (folder / CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    write_tensors(folder / WEIGHTS, table, blocks)


def common_fields(base: str, modules: Iterable[str]) -> dict[str, Any]:
    """What every adapter_config.json says."""
    return {
        "base_model_name_or_path": base,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
        "target_modules": sorted(modules),
        "task_type": "CAUSAL_LM",
    }
