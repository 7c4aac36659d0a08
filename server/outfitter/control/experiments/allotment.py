"""Which variant has which buckets, and how few of them change hands when shares change. Pure.

The first deal is GrowthBook's: every variant has a stretch of the line as long as its share, and
serves the first part of it, as long as the coverage says. A later deal takes from variants that
shrink, and gives to those that grow; no other bucket moves.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, Self

from outfitter.control.experiments.hashing import NUM_BUCKETS

Bucket = tuple[str | None, str | None]
"""The variant that has a bucket, None for nobody; and the one that had it last, or has it."""
_FREE: Bucket = (None, None)


@dataclass(frozen=True)
class Segment:
    """Neighbouring buckets, `stop` excluded, that one variant has.

    variant: its key; None where nobody has them. former: then the one that had them last.
    """

    start: int
    stop: int
    variant: str | None = None
    former: str | None = None

    @property
    def range(self) -> tuple[float, float]:
        """The part of the line from 0 to 1, as GrowthBook's `ranges` tell it."""
        return self.start / NUM_BUCKETS, self.stop / NUM_BUCKETS


@dataclass(frozen=True)
class Allotment:
    """All buckets, in order, without a gap."""

    segments: tuple[Segment, ...]

    def variant_of(self, bucket: int) -> str | None:
        """The one that has a bucket; None for nobody."""
        place = bisect_right(self.segments, bucket, key=lambda segment: segment.start)
        return self.segments[place - 1].variant

    @property
    def counts(self) -> dict[str, int]:
        """How many buckets each variant has."""
        found: dict[str, int] = {}
        for one in self.segments:
            if one.variant is not None:
                found[one.variant] = found.get(one.variant, 0) + one.stop - one.start
        return found

    @property
    def buckets(self) -> list[Bucket]:
        """One by one."""
        return [
            (one.variant, one.variant or one.former)
            for one in self.segments
            for _ in range(one.start, one.stop)
        ]

    @classmethod
    def of(cls, buckets: Iterable[Bucket]) -> Self:
        """From all buckets, one by one."""
        return cls(tuple(_segments(buckets)))

    def to_json(self) -> list[dict[str, Any]]:
        """What `from_json` reads."""
        fields = ("start", "stop", "variant", "former")
        told = ({name: getattr(one, name) for name in fields} for one in self.segments)
        return [{name: value for name, value in one.items() if value is not None} for one in told]

    @classmethod
    def from_json(cls, given: Iterable[Mapping[str, Any]]) -> Self:
        """What `to_json` told."""
        return cls(tuple(Segment(**one) for one in given))


def deal(
    shares: Mapping[str, float], coverage: float, before: Allotment | None = None
) -> Allotment:
    """Deal the buckets to variants; those that `before` gave stay where they can.

    shares: of each variant in their order, which sum to 1. coverage: the part of all units that
    take part, from 0 to 1. Each variant gets round(coverage · its share of 10,000), and at least
    one where neither is 0. As many buckets change hands as variants grow by, which is the least.
    A variant that grows takes back first what it had before, then what nobody ever had, then what
    others have given up.
    """
    lengths = _lengths(shares)
    if before is None:
        return Allotment.of(_laid_out(lengths, coverage))
    buckets = before.buckets
    wanted = {key: _covered(length, coverage) for key, length in lengths.items()}
    own = {key: _own(buckets, key) for key in {*wanted, *before.counts}}
    for key, mine in own.items():
        for bucket in mine[wanted.get(key, 0) :]:
            buckets[bucket] = (None, key)
    for key, most in wanted.items():
        missing = most - len(own[key])
        if missing > 0:
            for bucket in _by_preference(buckets, key, own[key])[:missing]:
                buckets[bucket] = (key, key)
    return Allotment.of(buckets)


def _lengths(shares: Mapping[str, float]) -> dict[str, int]:
    """Of each variant's stretch, in buckets: all of them, by the largest remainder."""
    exact = {key: share * NUM_BUCKETS for key, share in shares.items()}
    lengths = {key: int(value) for key, value in exact.items()}
    by_remainder = sorted(exact, key=lambda key: lengths[key] - exact[key])
    for key in by_remainder[: NUM_BUCKETS - sum(lengths.values())]:
        lengths[key] += 1
    for key, share in shares.items():
        if share > 0 and not lengths[key]:
            lengths[max(lengths, key=lambda one: lengths[one])] -= 1
            lengths[key] = 1
    return lengths


def _covered(length: int, coverage: float) -> int:
    """How many buckets of a stretch take part."""
    if not length or coverage <= 0:
        return 0
    return min(length, max(1, int(coverage * length + 0.5)))


def _laid_out(lengths: Mapping[str, int], coverage: float) -> Iterator[Bucket]:
    for key, length in lengths.items():
        covered = _covered(length, coverage)
        yield from [(key, key)] * covered
        yield from [_FREE] * (length - covered)


def _own(buckets: Sequence[Bucket], key: str) -> list[int]:
    return [bucket for bucket, (variant, _) in enumerate(buckets) if variant == key]


def _by_preference(buckets: Sequence[Bucket], key: str, own: Sequence[int]) -> list[int]:
    """Buckets that nobody has, the best for `key` first: those that follow its own come sooner."""
    end = own[-1] + 1 if own else 0

    def rank(bucket: int) -> tuple[int, int]:
        former = buckets[bucket][1]
        return (0 if former == key else 1 if former is None else 2), (bucket - end) % NUM_BUCKETS

    return sorted((b for b, (variant, _) in enumerate(buckets) if variant is None), key=rank)


def _segments(buckets: Iterable[Bucket]) -> Iterator[Segment]:
    runs = [(bucket, len(list(run))) for bucket, run in groupby(buckets)]
    stops = accumulate(length for _, length in runs)
    for ((variant, former), length), stop in zip(runs, stops, strict=True):
        yield Segment(stop - length, stop, variant, None if variant else former)
