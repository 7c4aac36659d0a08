"""Where task vector files live: by digest, in a directory and the tiers around it."""

from taskvectors.store.directory import DirectoryStore

__all__ = ["DirectoryStore"]
