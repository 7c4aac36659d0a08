"""GrowthBook's hash, version 2: where a unit stands on the line from 0 to 1. Pure.

The same value and seed stand at the same place in every replica, and in every GrowthBook SDK
(docs.growthbook.io, "Build Your Own SDK", `hashVersion` 2).
"""

NUM_BUCKETS = 10_000
"""Places on the line; bucket k stands at k / 10,000."""
HASH_VERSION = 2
_OFFSET, _PRIME, _MASK = 0x811C9DC5, 0x01000193, 0xFFFFFFFF


def fnv1a32(text: str) -> int:
    """FNV-1a of 32 bits over the UTF-16 units of `text`, as JavaScript's `charCodeAt` has them."""
    value = _OFFSET
    if text.isascii():
        for byte in text.encode():
            value = ((value ^ byte) * _PRIME) & _MASK
        return value
    units = text.encode("utf-16-le", "surrogatepass")
    for low, high in zip(units[::2], units[1::2], strict=True):
        value = ((value ^ (low | high << 8)) * _PRIME) & _MASK
    return value


def bucket_of(seed: str, value: str) -> int:
    """The bucket of a unit; those of two seeds are independent."""
    return fnv1a32(str(fnv1a32(seed + value))) % NUM_BUCKETS


def is_within(bucket: int, start: float, end: float) -> bool:
    """Whether a bucket stands in a part of the line, `end` excluded."""
    return start <= bucket / NUM_BUCKETS < end
