"""Placement of cost: whether a loadout is worth composing into one entry. Pure: no I/O, no clock.

A decoded token pays for every vector of its loadout, parameter by parameter:

    before = Σ_vectors Σ_parameters (elements + ROW · rows)
    after  = Σ_parameters (union + ROW · rows)
    union  = numel · (1 − Π_vectors (1 − elements / numel)), supports taken as independent

`elements`: nonzeros where sparse, rank · (in + out) where low-rank, numel where dense. A low-rank
delta makes its parameter's union dense, so it pays only where ranks are very high. Composing costs
START + PER_ELEMENT · before, once, in the same unit. ROW counts what a row does besides its
elements (an offset read, a sum written); it, START and PER_ELEMENT are estimates, not measured.

Composing pays when the relative gain is at least MARGIN, and the gain over the requests that
are expected (as many as its window holds) exceeds the cost, and the result fits the free pool.

Nothing asks it yet: every linear loadout is still served as it is, from its own vectors.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from taskvectors.format import FileHeader

ROW = 2.0
START = 1e9
"""A child process starts for about a second; an element takes about a nanosecond."""
PER_ELEMENT = 200.0
TOKENS = 64.0
"""Tokens that a request is taken to compute; the planner does not see their number."""
MARGIN = 0.1
MIN_REQUESTS = 32.0
HALF_LIFE_S = 300.0
MAX_WATCHED = 1024


@dataclass(frozen=True)
class ParameterCost:
    """What one vector does at one parameter. elements: of its delta; rows, numel: of the base."""

    elements: int
    rows: int
    numel: int
    is_low_rank: bool = False


VectorCost = Mapping[str, ParameterCost]


@dataclass(frozen=True)
class Prospect:
    """One loadout. requests: decayed, that it served. nbytes: of the composed entry, at most."""

    vectors: Sequence[VectorCost]
    requests: float
    free_bytes: int
    nbytes: int
    is_linear: bool = True
    is_eager: bool = True


@dataclass(frozen=True)
class Decision:
    """before, after: elements a token. gain: the part of `before` that is saved; may be < 0."""

    is_worth: bool
    gain: float
    before: float
    after: float
    reason: str


def vector_cost(header: FileHeader) -> VectorCost:
    """The cost of a vector, from its file's header alone."""
    costs = {}
    for name, spec in header.parameters.items():
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


def predict(vectors: Sequence[VectorCost]) -> tuple[float, float]:
    """Elements a token before and after composing."""
    before = after = 0.0
    for name in {name for vector in vectors for name in vector}:
        costs = [vector[name] for vector in vectors if name in vector]
        before += sum(cost.elements + ROW * cost.rows for cost in costs)
        after += union_elements(costs) + ROW * costs[0].rows
    return before, after


def decide(prospect: Prospect, *, min_requests: float = MIN_REQUESTS) -> Decision:
    """Whether composing pays; the first reason against it, if it does not."""
    before, after = predict(prospect.vectors)
    gain = 1 - after / before if before else 0.0
    reason = _objection(prospect, before, after, min_requests)
    return Decision(not reason, gain, before, after, reason or "gain")


def _objection(prospect: Prospect, before: float, after: float, min_requests: float) -> str | None:
    cost = START + PER_ELEMENT * before
    checks = (
        ("not_linear", not prospect.is_linear),
        ("not_eager", not prospect.is_eager),
        ("one_vector", len(prospect.vectors) < 2),
        ("few_requests", prospect.requests < min_requests),
        ("no_gain", before - after < MARGIN * before or not before),
        ("cost", (before - after) * TOKENS * prospect.requests < cost),
        ("no_room", prospect.nbytes > prospect.free_bytes),
    )
    return next((reason for reason, holds in checks if holds), None)


class Window:
    """Requests by loadout digest, halved every HALF_LIFE_S; the least recent ones are forgotten."""

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
