"""Placement of cost: whether a loadout is worth composing into one entry. Pure: no I/O, no clock.

A decoded token pays for every vector of its loadout, parameter by parameter:

    before = Σ_vectors Σ_parameters (elements + ROW · rows)
    after  = Σ_parameters (union + ROW · rows)
    union  = numel · (1 − Π_vectors (1 − elements / numel)), supports taken as independent

`elements`: nonzeros where sparse, LOW_RANK · rank · (in + out) where low-rank, numel where dense.
A low-rank delta makes its parameter's union dense, so it pays only where ranks are very high.
Composing costs START + PER_ELEMENT · before, once, in the same unit.

A vector that other loadouts use in the same step is computed all the same, and the composed entry
comes on top: of `before`, the part of the requests that are not this loadout's is taken off.

Composing pays when what remains is at least MARGIN of `before`, and the gain over the requests
that are expected (as many as its window holds) exceeds the cost, and the result fits the free pool.
Once composed it is served for as long as anything remains.
"""

import math
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from taskvectors.format import FileHeader
from taskvectors.selection import Selection
from taskvectors.vector import module_of

ROW = 7.0
"""What a row does besides its elements, its input's column included, in elements. Measured on a CPU
by tests/benchmarks/placement.py, as are LOW_RANK and the unit, 1.1 ns: one token, 0.05 to 10 %."""
LOW_RANK = 0.5
"""An element of a low-rank factor, which is read in order: 0.3 to 0.5 for one token, 0.8 to 1.1 for
16."""
START = 1e9
"""A child process starts for about a second."""
PER_ELEMENT = 200.0
TOKENS = 64.0
"""Tokens that a request is taken to compute; the planner does not see their number."""
MARGIN = 0.1
MIN_REQUESTS = 32.0
HALF_LIFE_S = 300.0
MAX_WATCHED = 1024
ELEMENT_BYTES = 8
ROW_BYTES = 8
"""At most, of a composed entry: columns beside float32."""


@dataclass(frozen=True)
class ParameterCost:
    """What one vector does at one parameter. elements: of its delta; rows, numel: of the base."""

    elements: int
    rows: int
    numel: int
    is_low_rank: bool = False

    @property
    def total(self) -> float:
        """For a token, in elements of a sparse delta."""
        return (LOW_RANK if self.is_low_rank else 1.0) * self.elements + ROW * self.rows


VectorCost = Mapping[str, ParameterCost]


@dataclass(frozen=True)
class Estimate:
    """One loadout. before, after: elements a token. nbytes: of the composed entry, at most."""

    num_vectors: int
    before: float
    after: float
    nbytes: int


@dataclass(frozen=True)
class Prospect:
    """One loadout now.

    requests: decayed, that it served. share: its part of the requests for its busiest vector.
    """

    estimate: Estimate
    requests: float
    free_bytes: int
    share: float = 1.0
    is_composed: bool = False


@dataclass(frozen=True)
class Decision:
    """gain: the part of `before` that is saved; may be < 0. reason: `gain`, or the first
    against it.
    """

    is_worth: bool
    gain: float
    reason: str


def vector_cost(header: FileHeader, selections: Collection[Selection] = ()) -> VectorCost:
    """The cost of a vector, from its file's header alone; of what any of `selections` selects."""
    costs = {}
    for name, spec in header.parameters.items():
        module = module_of(name)
        if selections and not any(selection.factor(module) for selection in selections):
            continue
        is_matrix = len(spec.shape) == 2
        is_low_rank = spec.kind == "low_rank"
        sparse = spec.nnz if spec.kind == "sparse" and is_matrix else spec.numel
        elements = spec.rank * sum(spec.shape) if is_low_rank else sparse
        rows = spec.shape[0] if is_matrix else 0
        costs[name] = ParameterCost(elements, rows, spec.numel, is_low_rank)
    return costs


def union_elements(costs: Sequence[ParameterCost]) -> float:
    """Expected elements of the composed delta of one parameter; at most its numel."""
    if len(costs) == 1:
        return float(costs[0].elements)
    numel = costs[0].numel
    if any(cost.is_low_rank for cost in costs):
        return float(numel)
    if any(cost.elements >= numel for cost in costs):
        return float(numel)
    logs = math.fsum(math.log1p(-cost.elements / numel) for cost in costs)
    return -numel * math.expm1(logs)


def predict(vectors: Sequence[VectorCost]) -> Estimate:
    """What a loadout of distinct vectors costs before and after composing."""
    before = after = 0.0
    nbytes = 0
    for name in {name for vector in vectors for name in vector}:
        costs = [vector[name] for vector in vectors if name in vector]
        rows, union = costs[0].rows, union_elements(costs)
        before += sum(cost.total for cost in costs)
        after += costs[0].total if len(costs) == 1 else union + ROW * rows
        nbytes += math.ceil(ELEMENT_BYTES * union) + ROW_BYTES * (rows + 1)
    return Estimate(len(vectors), before, after, nbytes)


def decide(prospect: Prospect, *, min_requests: float = MIN_REQUESTS) -> Decision:
    """Whether composing pays; the first reason against it, if it does not."""
    estimate = prospect.estimate
    gain = 1 - estimate.after / estimate.before if estimate.before else 0.0
    remains = gain - (1 - min(prospect.share, 1.0))
    reason = _objection(prospect, gain, remains, min_requests)
    return Decision(not reason, gain, reason or "gain")


def _objection(prospect: Prospect, gain: float, remains: float, min_requests: float) -> str | None:
    before, is_new = prospect.estimate.before, not prospect.is_composed
    least = MARGIN if is_new else 0.0
    saved = remains * before * TOKENS * prospect.requests
    checks = (
        ("one_vector", prospect.estimate.num_vectors < 2),
        ("few_requests", is_new and prospect.requests < min_requests),
        ("no_gain", gain < least or gain <= 0),
        ("shared", remains < least),
        ("cost", is_new and saved < START + PER_ELEMENT * before),
        ("no_room", is_new and prospect.estimate.nbytes > prospect.free_bytes),
    )
    return next((reason for reason, holds in checks if holds), None)


class Window:
    """Requests by digest, halved every HALF_LIFE_S; the least recent ones are forgotten."""

    def __init__(self, half_life_s: float = HALF_LIFE_S, most: int = MAX_WATCHED) -> None:
        self._half_life_s = half_life_s
        self._most = most
        self._counts: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, digest: str, now: float) -> float:
        """Count a request; return the count. now: seconds of any one clock that never goes back."""
        count = self.count(digest, now) + 1
        self._counts[digest] = (count, now)
        self._counts.move_to_end(digest)
        while len(self._counts) > self._most:
            self._counts.popitem(last=False)
        return count

    def count(self, digest: str, now: float) -> float:
        """Requests that still count."""
        count, then = self._counts.get(digest, (0.0, now))
        return float(count * 0.5 ** ((now - then) / self._half_life_s))
