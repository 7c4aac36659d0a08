"""Task vector files: one safetensors file each, nothing executable in it (docs/format.md)."""

from taskvectors.format.exceptions import Exceptions
from taskvectors.format.header import FileHeader, check_against_base
from taskvectors.format.index import INDEX_ENCODINGS
from taskvectors.format.parameters import ParameterSpec
from taskvectors.format.reader import (
    VectorReader,
    file_digest,
    read_header,
    read_vector,
    validate_file,
)
from taskvectors.format.values import VALUE_ENCODINGS, as_stored
from taskvectors.format.writer import VectorWriter, write_vector

__all__ = [
    "INDEX_ENCODINGS",
    "VALUE_ENCODINGS",
    "Exceptions",
    "FileHeader",
    "ParameterSpec",
    "VectorReader",
    "VectorWriter",
    "as_stored",
    "check_against_base",
    "file_digest",
    "read_header",
    "read_vector",
    "validate_file",
    "write_vector",
]
