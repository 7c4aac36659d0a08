"""Merging task vectors into one: a method a module, dialects named after their source."""

from taskvectors.merge.stream import MergedVector, Progress, merge_vectors, write_merged
from taskvectors.sources import FileSource, MemorySource, Source, open_files

__all__ = [
    "FileSource",
    "MemorySource",
    "MergedVector",
    "Progress",
    "Source",
    "merge_vectors",
    "open_files",
    "write_merged",
]
