"""The planner: counts the requests for linear loadouts and composes those that are worth it.

The rule is `placement.decide`. What it approves is composed and loaded by one task in the
background, so never on a request's path. A request holds the plain vectors of its loadout in any
case; where the composed form is resident, too, it is served that one.
"""

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from taskvectors.errors import InvalidFile, TaskVectorError, VectorLoadFailed, VectorNotFound
from taskvectors.format import FileHeader
from taskvectors.spec import Loadout
from taskvectors.vllm_plugin.admission import Held
from taskvectors.vllm_plugin.placement import (
    MAX_WATCHED,
    MIN_REQUESTS,
    Estimate,
    Prospect,
    Window,
    decide,
    predict,
    vector_cost,
)

logger = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own, to be shown with it

RETRY_S = 300.0
"""So long a loadout that failed, or for which there was no room, is left alone."""

REASONS = (
    *("composed", "composing", "not_resident", "weighing", "few_requests", "one_vector"),
    *("no_gain", "shared", "cost", "no_room", "failed", "promoted", "not_measured"),
)
"""What becomes of a request for a linear loadout; all but the first are served plain."""


class Composes(Protocol):
    """What makes the composed file of a loadout."""

    def compose_any(self, loadout: Loadout) -> Awaitable[Loadout]:
        """Its composed form, for a linear loadout, too."""
        ...

    def repair(self, served: Loadout) -> Awaitable[None]:
        """Drop the file of a composed form if it is lost or damaged."""
        ...


class Holds(Protocol):
    """What holds vectors in the pool."""

    def hold(self, digest: str, *, may_evict: bool) -> Awaitable[Held | None]:
        """Reserve one vector and load it; None when there is no room."""
        ...

    def hold_resident(self, digest: str) -> Held | None:
        """Reserve one vector that is ready; None when it is not."""
        ...

    def release(self, held: Held) -> None:
        """Let go of it."""
        ...

    @property
    def free(self) -> tuple[int, int]:
        """Bytes and columns that nobody has."""
        ...


@dataclass(eq=False)
class Candidate:
    """A loadout that became hot. waits_until: on the planner's clock; nothing is tried before."""

    estimate: Estimate | None = None
    form: Loadout | None = None
    waits_until: float = 0.0
    has_failed: bool = False


@dataclass(eq=False)
class Users:
    """The requests of one loadout that run. held: of its composed form, once one is served it.

    Whoever looks the loadout up in vLLM's table may find either form, so the composed one is held
    until nobody is left.
    """

    number: int = 0
    held: Held | None = None


class Planner:
    """Which form of a loadout each request is served.

    header: of a vector's file; may read. is_promoted: whether the resident weights are not the
    base's; all are served plain then. is_measured: whether the rule's constants are of the kernels
    that run. clock: seconds.
    """

    def __init__(
        self,
        composer: Composes,
        pool: Holds,
        header: Callable[[str], FileHeader],
        is_promoted: Callable[[], bool],
        *,
        is_on: bool = True,
        is_measured: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._composer = composer
        self._pool = pool
        self._header = header
        self._is_promoted = is_promoted
        self._is_on = is_on
        self._is_measured = is_measured
        self._clock = clock
        self._loadouts, self._vectors = Window(), Window()
        self._candidates: OrderedDict[str, Candidate] = OrderedDict()
        self._users: dict[str, Users] = {}
        self._task: asyncio.Task[None] | None = None
        self._decisions = dict.fromkeys(REASONS, 0)
        self._num_composed = self._num_failed = 0

    @contextlib.contextmanager
    def placed(self, loadout: Loadout) -> Iterator[Loadout]:
        """The form in which a request for a linear loadout is served; held while open."""
        if not self._is_on or not loadout.is_linear:
            yield loadout
            return
        users = self._users.setdefault(loadout.digest, Users())
        users.number += 1
        try:
            form, reason = self._choose(loadout, users)
            self._decisions[reason] += 1
            yield form
        finally:
            users.number -= 1
            if not users.number:
                del self._users[loadout.digest]
                if users.held is not None:
                    self._pool.release(users.held)

    def stats(self) -> dict[str, Any]:
        """Requests by decision, and what was made; see the endpoint's `/taskvectors/stats`."""
        forms = sum(candidate.form is not None for candidate in self._candidates.values())
        return {
            "is_on": self._is_on,
            "decisions": dict(self._decisions),
            "compositions": self._num_composed,
            "failures": self._num_failed,
            "requests": self._decisions["composed"],
            "loadouts": forms,
        }

    async def settle(self) -> None:
        """Wait for what is under way in the background."""
        if self._task is not None:
            await self._task

    def _choose(self, loadout: Loadout, users: Users) -> tuple[Loadout, str]:
        """The form, and why."""
        now = self._clock()
        requests = self._loadouts.add(loadout.digest, now)
        busiest = max((self._vectors.add(d, now) for d in loadout.digests), default=requests)
        if not self._is_measured:
            return loadout, "not_measured"
        if len(loadout.digests) < 2:
            return loadout, "one_vector"
        candidate = self._candidates.get(loadout.digest)
        if candidate is None and requests < MIN_REQUESTS:
            return loadout, "few_requests"
        candidate = self._known(loadout.digest)
        if self._is_promoted():
            return loadout, "promoted"
        if candidate.estimate is None:
            return loadout, self._begin(loadout, candidate, self._weigh, "weighing")
        prospect = Prospect(
            candidate.estimate,
            requests,
            self._pool.free[0] if self._pool.free[1] else 0,
            requests / busiest,
            is_composed=candidate.form is not None,
        )
        decision = decide(prospect)
        if not decision.is_worth:
            return loadout, decision.reason
        if candidate.form is None:
            return loadout, self._begin(loadout, candidate, self._compose, "composing")
        if users.held is None:
            [digest] = candidate.form.digests
            users.held = self._pool.hold_resident(digest)
        if users.held is None:
            return loadout, self._begin(loadout, candidate, self._load, "not_resident")
        return candidate.form, "composed"

    def _known(self, digest: str) -> Candidate:
        candidate = self._candidates.setdefault(digest, Candidate())
        self._candidates.move_to_end(digest)
        while len(self._candidates) > MAX_WATCHED:
            self._candidates.popitem(last=False)
        return candidate

    def _begin(
        self,
        loadout: Loadout,
        candidate: Candidate,
        work: Callable[[Loadout, Candidate], Awaitable[None]],
        reason: str,
    ) -> str:
        """Start the one task, unless one runs or this loadout is to be left alone; the reason."""
        if self._clock() < candidate.waits_until:
            return "failed" if candidate.has_failed else "no_room"
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._guard(loadout, candidate, work))
        return reason

    async def _guard(
        self,
        loadout: Loadout,
        candidate: Candidate,
        work: Callable[[Loadout, Candidate], Awaitable[None]],
    ) -> None:
        """Whatever goes wrong is counted, told once for a loadout, and not tried again soon."""
        try:
            await work(loadout, candidate)
            candidate.has_failed = False
        except TaskVectorError as error:
            if not candidate.has_failed:
                logger.warning("loadout sha256:%s is served plain: %s", loadout.digest, error)
            self._fail(candidate)
        except Exception:
            if not candidate.has_failed:
                logger.exception("loadout sha256:%s is served plain", loadout.digest)
            self._fail(candidate)

    def _fail(self, candidate: Candidate) -> None:
        self._num_failed += 1
        candidate.waits_until = self._clock() + RETRY_S
        candidate.has_failed = True

    async def _weigh(self, loadout: Loadout, candidate: Candidate) -> None:
        """From the headers of the files; a vector that is in it twice counts once."""

        def costs() -> Estimate:
            selections = {
                digest: [item.selection for item in loadout.items if item.digest == digest]
                for digest in loadout.digests
            }
            return predict([vector_cost(self._header(d), s) for d, s in selections.items()])

        candidate.estimate = await asyncio.to_thread(costs)

    async def _compose(self, loadout: Loadout, candidate: Candidate) -> None:
        form = await self._composer.compose_any(loadout)
        self._num_composed += 1
        candidate.form = form
        await self._load(loadout, candidate)

    async def _load(self, _loadout: Loadout, candidate: Candidate) -> None:
        """Into free room only; whatever evicts it later, it is loaded again when there is room."""
        assert candidate.form is not None
        [digest] = candidate.form.digests
        try:
            held = await self._pool.hold(digest, may_evict=False)
        except (VectorLoadFailed, VectorNotFound, InvalidFile):
            form, candidate.form = candidate.form, None
            await self._composer.repair(form)
            raise
        if held is None:
            candidate.waits_until = self._clock() + RETRY_S
        else:
            self._pool.release(held)
