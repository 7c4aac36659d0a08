"""Any safetensors file, read as if its author were hostile. Task vectors build on it."""

from taskvectors.container.layout import (
    LENGTH,
    MAX_HEADER,
    BufferSource,
    ByteSource,
    Container,
    TensorInfo,
    as_array,
    check_header_size,
    check_shape,
    open_regular,
    parse_container,
    read_bytes,
    read_container,
)

__all__ = [
    "LENGTH",
    "MAX_HEADER",
    "BufferSource",
    "ByteSource",
    "Container",
    "TensorInfo",
    "as_array",
    "check_header_size",
    "check_shape",
    "open_regular",
    "parse_container",
    "read_bytes",
    "read_container",
]
