"""Promotion in the API server: the vectors are held, requests wait, and then the weights change."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Protocol, TypeVar

from taskvectors import errors
from taskvectors.errors import EngineUnavailable, InvalidLoadout, TaskVectorError
from taskvectors.spec import Loadout
from taskvectors.vllm_plugin.admission import UNANSWERED

logger = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own, to be shown with it

Outcome = TypeVar("Outcome")

DRAIN_S = 600.0
"""How long requests that run may go on before a promotion is given up."""


class Admits(Protocol):
    """What holds the vectors of a loadout in the pool."""

    def admit(self, loadout: Loadout) -> AbstractAsyncContextManager[None]:
        """Hold them, all of them ready, while the context is open."""
        ...


class AdmitsPromoted(Protocol):
    """What holds those of a loadout that is promoted, too."""

    def admit(
        self, loadout: Loadout, *, is_promoted: bool = False
    ) -> AbstractAsyncContextManager[None]:
        """As `Admits`; what is promoted counts for no tenant."""
        ...


class Worker(Protocol):
    """The worker's weights; a failure of the worker's is told as `error` and `message`."""

    def promote(self, asked: str, served: str) -> Awaitable[Mapping[str, Any]]:
        """Write a linear loadout, `served`, in the place of what was promoted."""
        ...

    def demote(self) -> Awaitable[Mapping[str, Any]]:
        """Put the original weights back."""
        ...

    def promotion(self, *, checksum: bool) -> Awaitable[Mapping[str, Any]]:
        """What is promoted."""
        ...


class Gate:
    """Loadouts are admitted through it. While it is shut, they wait.

    Whoever shuts it waits until nobody is half-way through: an admission asks the worker, which
    answers nothing while it writes weights, and would give up.
    """

    def __init__(self, admission: Admits) -> None:
        self._admission = admission
        self._changed = asyncio.Condition()
        self._is_shut = False
        self._num_entering = 0

    @contextlib.asynccontextmanager
    async def admit(self, loadout: Loadout) -> AsyncIterator[None]:
        """As the admission does, once the gate is open."""
        async with AsyncExitStack() as stack:
            async with self._entering():
                await stack.enter_async_context(self._admission.admit(loadout))
            yield

    @property
    def is_shut(self) -> bool:
        """Whether loadouts wait."""
        return self._is_shut

    @contextlib.asynccontextmanager
    async def shut(self) -> AsyncIterator[None]:
        """While open, nobody enters."""
        self._is_shut = True
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: not self._num_entering)
            yield
        finally:
            self._is_shut = False
            async with self._changed:
                self._changed.notify_all()

    @contextlib.asynccontextmanager
    async def _entering(self) -> AsyncIterator[None]:
        if self._is_shut:
            async with self._changed:
                await self._changed.wait_for(lambda: not self._is_shut)
        self._num_entering += 1
        try:
            yield
        finally:
            self._num_entering -= 1
            if self._is_shut:
                async with self._changed:
                    self._changed.notify_all()


class Promoter:
    """Promotes and demotes, one after another.

    compose: the linear loadout of any. pause: a context in which the engine runs nothing, its
    caches emptied; raises TimeoutError where running requests do not end.
    """

    def __init__(
        self,
        worker: Worker,
        admission: AdmitsPromoted,
        gate: Gate,
        compose: Callable[[Loadout], Awaitable[Loadout]],
        pause: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        self._worker = worker
        self._admission = admission
        self._gate = gate
        self._compose = compose
        self._pause = pause
        self._turn = asyncio.Lock()
        self._held = AsyncExitStack()
        self._is_promoted = False
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def is_promoted(self) -> bool:
        """Whether the resident weights are, or may be about to be, others than the base's."""
        return self._is_promoted or self._gate.is_shut

    async def promote(self, loadout: Loadout) -> dict[str, Any]:
        """Make `loadout` what is answered to requests that name none; the worker's state.

        Raises InvalidLoadout for the base, what Admission and Composer raise, PromotionTooLarge,
        EngineUnavailable. Then what was promoted may be demoted, and the state says so.
        """
        if loadout.is_base:
            raise InvalidLoadout("the loadout adds nothing to the base; demote what is promoted")
        return await self._uninterrupted(self._promote(loadout))

    async def demote(self) -> dict[str, Any]:
        """Put the base back; the checksums of what was changed. Raises EngineUnavailable."""
        return await self._uninterrupted(self._demote())

    async def state(self, *, checksum: bool = False) -> dict[str, Any]:
        """What the worker says, and whether requests wait for a change, as `is_changing`.

        With the checksum of all weights the worker does nothing else for seconds. Raises
        EngineUnavailable.
        """
        state = await _asked(self._worker.promotion(checksum=checksum))
        return {**state, "is_changing": self._gate.is_shut}

    async def _promote(self, loadout: Loadout) -> dict[str, Any]:
        async with self._turn:
            state = await self.state()
            if state["loadout"] == loadout.canonical:
                return state
            async with AsyncExitStack() as stack:
                served = loadout if loadout.is_linear else await self._compose(loadout)
                await stack.enter_async_context(self._admission.admit(served, is_promoted=True))
                try:
                    async with self._standstill():
                        state = await _asked(
                            self._worker.promote(loadout.canonical, served.canonical)
                        )
                except TaskVectorError:
                    await self._release_if_demoted()
                    raise
                self._is_promoted = True
                await self._held.aclose()
                self._held = stack.pop_all()
            return state

    async def _demote(self) -> dict[str, Any]:
        async with self._turn:
            if (state := await self.state()).get("loadout") is None:
                return state
            async with self._standstill():
                state = await _asked(self._worker.demote())
            self._is_promoted = False
            await self._held.aclose()
            return state

    async def _release_if_demoted(self) -> None:
        """A promotion that failed may have taken out the one before."""
        if (await self.state()).get("loadout") is None:
            self._is_promoted = False
            await self._held.aclose()

    @contextlib.asynccontextmanager
    async def _standstill(self) -> AsyncIterator[None]:
        async with self._gate.shut():
            try:
                async with self._pause():
                    yield
            except TimeoutError:
                raise EngineUnavailable(
                    f"the requests that run did not end within {DRAIN_S:g} s; try again"
                ) from None

    async def _uninterrupted(self, work: Coroutine[Any, Any, Outcome]) -> Outcome:
        """Done whether or not who asked for it waits."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)


async def _asked(answer: Awaitable[Mapping[str, Any]]) -> dict[str, Any]:
    """What the worker answers. Raises the worker's TaskVectorError, EngineUnavailable."""
    try:
        state = dict(await answer)
    except Exception as error:
        logger.exception("the engine did not take an order")
        raise EngineUnavailable(UNANSWERED) from error
    if "error" in state:
        kind: type[TaskVectorError] = getattr(errors, state["error"], TaskVectorError)
        raise kind(state["message"])
    return state
