"""Experiments: what they are, who gets which variant, and what is decided. Pure."""
