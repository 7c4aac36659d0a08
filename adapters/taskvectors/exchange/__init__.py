"""Adapters and checkpoints of other libraries: read as task vectors, written from merges."""

from taskvectors.exchange.peft_lora import import_lora

__all__ = ["import_lora"]
