"""Adapters and checkpoints of other libraries: read as task vectors, written from merges."""

from taskvectors.exchange.checkpoint_export import export_checkpoint
from taskvectors.exchange.peft_export import export_peft
from taskvectors.exchange.peft_import import import_adapter
from taskvectors.exchange.peft_lora import import_lora
from taskvectors.exchange.peft_shira import export_shira, import_shira
from taskvectors.exchange.restoring import restoring

__all__ = [
    "export_checkpoint",
    "export_peft",
    "export_shira",
    "import_adapter",
    "import_lora",
    "import_shira",
    "restoring",
]
