"""Blobs of OCI artefacts: where they are, and their bytes, checked on the way."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

from outfitter.errors import SourceFailed
from outfitter.transfer.fetched import Progress
from taskvectors.container.strict_json import loads
from taskvectors.errors import InvalidHeader

FILEPATH = "org.cncf.model.filepath"
_BLOCK = 1 << 20
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class Source(Protocol):
    """What bytes are read from."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        ...


@dataclass(frozen=True)
class Descriptor:
    """Where a blob is. digest: its sha256, in hex. size: bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, media_type: str, data: bytes, **annotations: str) -> "Descriptor":
        """Of these bytes; `filepath` is the one annotation that the specification knows."""
        named = {FILEPATH if key == "filepath" else key: text for key, text in annotations.items()}
        return cls(media_type, hashlib.sha256(data).hexdigest(), len(data), named)

    @classmethod
    def parse(cls, value: object, where: str) -> "Descriptor":
        """Read one from JSON; raises SourceFailed."""
        fields = value if isinstance(value, Mapping) else {}
        digest, size = fields.get("digest"), fields.get("size")
        match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
        if match is None:
            raise SourceFailed(f"{where} has the digest {str(digest)[:100]!r}; use sha256:<hex>")
        if type(size) is not int or not 0 <= size < 2**63:
            raise SourceFailed(f"{where} has the size {str(size)[:40]!r}; use a number of bytes")
        texts = texts_of(fields.get("annotations"))
        return cls(str(fields.get("mediaType")), match[1], size, texts)

    def to_json(self) -> dict[str, object]:
        """As OCI writes it."""
        fields: dict[str, object] = {
            "mediaType": self.media_type,
            "digest": f"sha256:{self.digest}",
            "size": self.size,
        }
        return fields | ({"annotations": dict(self.annotations)} if self.annotations else {})


def parse_json(data: bytes, what: str) -> Mapping[str, Any]:
    """A JSON object that is bounded in depth; raises SourceFailed."""
    try:
        value = loads(data, what)
    except InvalidHeader as error:
        raise SourceFailed(str(error)) from error
    if not isinstance(value, dict):
        raise SourceFailed(f"{what} must be a JSON object")
    return value


def texts_of(value: object) -> dict[str, str]:
    """Annotations; what is no text is left out."""
    pairs = value.items() if isinstance(value, Mapping) else ()
    return {str(key): text for key, text in pairs if isinstance(text, str)}


def copy_checked(source: Source, to: BinaryIO, descriptor: Descriptor, progress: Progress) -> None:
    """Copy exactly the bytes that the descriptor names; raises SourceFailed."""
    digest, left = hashlib.sha256(), descriptor.size
    while block := source.read(min(_BLOCK, left + 1)):
        left -= len(block)
        if left < 0:
            break
        digest.update(block)
        to.write(block)
        progress(len(block), descriptor.size)
    if left != 0 or digest.hexdigest() != descriptor.digest:
        raise SourceFailed(f"the blob sha256:{descriptor.digest} has other bytes than it should")
