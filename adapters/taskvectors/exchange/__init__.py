"""Adapters and checkpoints of other libraries: read as task vectors, written from merges."""

from taskvectors.exchange.checkpoint_export import export_checkpoint
from taskvectors.exchange.peft_lora import import_lora

__all__ = ["export_checkpoint", "import_lora"]
