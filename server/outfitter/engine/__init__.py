"""The engine: its process, and the way to it."""
