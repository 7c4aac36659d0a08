"""Where task vector files live: by digest, with names and versions for people."""

from taskvectors.store.base import Entry, Resolved, Store
from taskvectors.store.directory import DirectoryStore

__all__ = ["DirectoryStore", "Entry", "Resolved", "Store"]
