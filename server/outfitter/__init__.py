"""Outfitter: a gateway that equips one resident base model with task vectors, per request."""

__version__ = "0.1.0"
