"""Task vector files: one safetensors file each, nothing executable in it (docs/format.md)."""

from taskvectors.format.header import FileHeader, ParameterSpec, check_against_base
from taskvectors.format.importers import import_lora
from taskvectors.format.reader import (
    VectorReader,
    file_digest,
    read_header,
    read_vector,
    validate_file,
)
from taskvectors.format.writer import VectorWriter, write_vector

__all__ = [
    "FileHeader",
    "ParameterSpec",
    "VectorReader",
    "VectorWriter",
    "check_against_base",
    "file_digest",
    "import_lora",
    "read_header",
    "read_vector",
    "validate_file",
    "write_vector",
]
