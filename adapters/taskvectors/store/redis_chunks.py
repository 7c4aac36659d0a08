"""A file in Redis: one hash, so that it appears, expires and is evicted whole.

`<prefix>:{<digest>}` has a field `m`, the manifest, and fields `0`, `1`, … of one chunk each, all
of the same size but the last. Manifest, little-endian: version 1 (u32), chunk bytes (u32), file
bytes (u64), then a u64 per chunk, which finds damage: the sum of the chunk's little-endian u64
words and of its last bytes. The file's digest, which the reader checks, is the authority.
"""

import struct
from dataclasses import dataclass

import numpy as np

from taskvectors.errors import VectorNotFound

CHUNK_BYTES = 2 << 20
MAX_CHUNKS = 1 << 16
MANIFEST = "m"
_VERSION = 1
_HEAD = struct.Struct("<IIQ")
_MASK = (1 << 64) - 1

# ARGV: the most bytes of a manifest, the most chunks, ttl_ms. Returns the manifest and the size of
# each chunk, so that nothing is read before its size is known; nil when the file is not here.
OPEN = """
local size, chunks = redis.call('HSTRLEN', KEYS[1], 'm'), redis.call('HLEN', KEYS[1]) - 1
if chunks < 0 then return nil end
if size > tonumber(ARGV[1]) or chunks > tonumber(ARGV[2]) then return {'', {}} end
redis.pcall('PEXPIRE', KEYS[1], ARGV[3])
local sizes = {}
for i = 1, chunks do sizes[i] = redis.call('HSTRLEN', KEYS[1], i - 1) end
return {redis.call('HGET', KEYS[1], 'm'), sizes}
"""
MAX_MANIFEST = _HEAD.size + 8 * MAX_CHUNKS


@dataclass(frozen=True)
class Manifest:
    """size: of the file; sums: one per chunk."""

    size: int
    chunk_bytes: int
    sums: tuple[int, ...]

    def bounds(self, chunk: int) -> tuple[int, int]:
        """Where a chunk starts and ends in the file."""
        start = chunk * self.chunk_bytes
        return start, min(start + self.chunk_bytes, self.size)

    def pack(self) -> bytes:
        """The bytes of the field."""
        head = _HEAD.pack(_VERSION, self.chunk_bytes, self.size)
        return head + struct.pack(f"<{len(self.sums)}Q", *self.sums)

    @classmethod
    def of(cls, data: memoryview) -> "Manifest":
        """Of a file that is about to be put."""
        starts = range(0, data.nbytes, CHUNK_BYTES)
        sums = tuple(checksum(data[start : start + CHUNK_BYTES]) for start in starts)
        return cls(data.nbytes, CHUNK_BYTES, sums)

    @classmethod
    def parse(cls, field: bytes | None, sizes: list[int]) -> "Manifest":
        """Raises VectorNotFound unless the manifest is sound and has just these chunks."""
        if field is None or len(field) < _HEAD.size or len(field) % 8:
            raise VectorNotFound("the manifest is damaged")
        version, chunk_bytes, size = _HEAD.unpack_from(field)
        count = (len(field) - _HEAD.size) // 8
        manifest = cls(size, chunk_bytes, struct.unpack_from(f"<{count}Q", field, _HEAD.size))
        expected = [end - start for start, end in map(manifest.bounds, range(count))]
        if version != _VERSION or expected != sizes or sum(expected) != size or 0 in expected:
            raise VectorNotFound("the manifest does not match its chunks")
        return manifest


def checksum(data: memoryview | bytes) -> int:
    """As fast as memory, unlike a hash; see the module."""
    whole = len(data) & ~7
    words = np.frombuffer(data[:whole], "<u8")
    return (int(words.sum(dtype=np.uint64)) + int.from_bytes(data[whole:], "little")) & _MASK
