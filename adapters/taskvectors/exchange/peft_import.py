"""Any PEFT folder that has an additive task vector, recognised by its `peft_type`."""

import os
from pathlib import Path

from taskvectors.checkpoint import read_json
from taskvectors.errors import UnsupportedAdapter
from taskvectors.exchange.peft_folder import CONFIG
from taskvectors.exchange.peft_lora import import_lora
from taskvectors.exchange.peft_shira import import_shira

_IMPORTERS = {"LORA": import_lora, "SHIRA": import_shira}


def import_adapter(
    peft_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    base_dir: str | os.PathLike[str] | None = None,
    value_dtype: str | None = None,
) -> str:
    """Write the task vector of a PEFT folder to `out`; return the file's digest.

    Raises UnsupportedAdapter, InvalidCheckpoint, BaseMismatch, InvalidFile, OSError.
    """
    kind = read_json(Path(peft_dir) / CONFIG).get("peft_type")
    if not isinstance(kind, str) or kind not in _IMPORTERS:
        choices = ", ".join(_IMPORTERS)
        raise UnsupportedAdapter(f"unsupported adapter {str(kind)[:80]!r}; choose {choices}")
    run = _IMPORTERS[kind]
    return run(peft_dir, out, base_dir=base_dir, value_dtype=value_dtype)
