"""A fuzz target over the reader of task vector files; see README.md."""
