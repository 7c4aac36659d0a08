"""Promotions in the API server: vectors are held, others wait, and a failure leaves all running."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from taskvectors.errors import (
    EngineUnavailable,
    InvalidLoadout,
    PoolBusy,
    PromotionTooLarge,
    TaskVectorError,
)
from taskvectors.spec import Loadout, LoadoutItem
from taskvectors.vllm_plugin.promoter import Gate, Promoter

FIRST = Loadout.build([LoadoutItem("a" * 64, 0.5)])
SECOND = Loadout.build([LoadoutItem("b" * 64, 1.0)])
TIES = Loadout.build([LoadoutItem("a" * 64, 1.0), LoadoutItem("b" * 64, 1.0)], "ties")
COMPOSED = Loadout.build([LoadoutItem("c" * 64, 1.0)])


class World:
    """Worker, admission, composer and pause in one; `log` tells what happened in which order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.held: list[str] = []
        self.counts_for_nobody: list[bool] = []
        self.promoted: str | None = None
        self.fault: Mapping[str, str] | Exception | None = None
        self.is_paused = False
        self.drain: float = 0.0
        self.slow_admission: asyncio.Event | None = None
        self.gate = Gate(self)
        self.promoter = Promoter(self, self, self.gate, self.compose, self.pause)

    async def promote(self, asked: str, served: str) -> Mapping[str, Any]:
        assert self.is_paused
        await asyncio.sleep(0)
        self.log.append(f"promote {Loadout.from_canonical(served).items[0].digest[0]}")
        if isinstance(self.fault, Exception):
            raise self.fault
        if self.fault is not None:
            self.promoted = None  # the one before was taken out first
            return self.fault
        self.promoted = asked
        return {"loadout": asked}

    async def demote(self) -> Mapping[str, Any]:
        assert self.is_paused
        self.log.append("demote")
        self.promoted = None
        return {"loadout": None, "sha256_restored": "x"}

    async def promotion(self, *, checksum: bool) -> Mapping[str, Any]:
        return {"loadout": self.promoted, **({"sha256_weights": "y"} if checksum else {})}

    @contextlib.asynccontextmanager
    async def admit(self, loadout: Loadout, *, is_promoted: bool = False) -> AsyncIterator[None]:
        self.counts_for_nobody.append(is_promoted)
        if self.slow_admission is not None:
            await self.slow_admission.wait()
        [digest] = loadout.digests
        self.held.append(digest[0])
        try:
            yield
        finally:
            self.held.remove(digest[0])

    async def compose(self, loadout: Loadout) -> Loadout:
        assert not loadout.is_linear
        return COMPOSED

    @contextlib.asynccontextmanager
    async def pause(self) -> AsyncIterator[None]:
        try:
            await asyncio.sleep(self.drain)
            if self.drain:
                raise TimeoutError
            self.is_paused = True
            self.log.append("pause")
            yield
        finally:
            self.is_paused = False
            self.log.append("resume")


def test_the_vectors_are_held_until_another_takes_their_place() -> None:
    """And let go of by demotion."""

    async def run() -> None:
        world = World()
        state = await world.promoter.promote(FIRST)
        assert state["loadout"] == FIRST.canonical
        assert world.held == ["a"]
        assert world.counts_for_nobody == [True]
        await world.promoter.promote(SECOND)
        assert world.held == ["b"]
        assert (await world.promoter.demote())["sha256_restored"] == "x"
        assert world.held == []
        assert world.log == [
            *("pause", "promote a", "resume", "pause", "promote b", "resume"),
            *("pause", "demote", "resume"),
        ]

    asyncio.run(run())


def test_what_changes_nothing_stops_nobody() -> None:
    """The same loadout again, and a demotion of nothing."""

    async def run() -> None:
        world = World()
        await world.promoter.demote()
        assert world.log == []
        await world.promoter.promote(FIRST)
        log = list(world.log)
        assert (await world.promoter.promote(FIRST))["loadout"] == FIRST.canonical
        assert (world.log, world.held) == (log, ["a"])

    asyncio.run(run())


def test_a_composed_loadout_is_promoted_as_what_it_is_served_as() -> None:
    """It is known by its own name."""

    async def run() -> None:
        world = World()
        assert (await world.promoter.promote(TIES))["loadout"] == TIES.canonical
        assert (world.held, world.log[1]) == (["c"], "promote c")

    asyncio.run(run())


def test_the_base_is_not_promoted() -> None:
    with pytest.raises(InvalidLoadout, match="adds nothing"):
        asyncio.run(World().promoter.promote(Loadout(())))


def test_loadouts_wait_while_the_weights_change() -> None:
    """Then they go on; those that run keep what they hold."""

    async def run() -> None:
        world = World()
        async with world.gate.admit(SECOND):
            async with world.gate.shut():
                entering = asyncio.create_task(enter(world))
                await asyncio.sleep(0.01)
                assert world.held == ["b"]
                assert (await world.promoter.state())["is_changing"] is True
            await entering
            assert (await world.promoter.state())["is_changing"] is False
        assert world.held == []

    asyncio.run(run())


def test_an_admission_under_way_is_waited_for() -> None:
    """Its questions to the worker would stay unanswered."""

    async def run() -> None:
        world = World()
        world.slow_admission = asyncio.Event()
        entering = asyncio.create_task(enter(world))
        await asyncio.sleep(0.01)
        shutting = asyncio.create_task(shut(world))
        await asyncio.sleep(0.01)
        assert world.log == []
        world.slow_admission.set()
        await asyncio.gather(entering, shutting)
        assert world.log == ["shut"]

    asyncio.run(run())


def test_an_admission_that_fails_does_not_keep_the_gate() -> None:
    async def run() -> None:
        world = World()
        world.slow_admission = asyncio.Event()
        entering = asyncio.create_task(enter(world))
        await asyncio.sleep(0.01)
        shutting = asyncio.create_task(shut(world))
        entering.cancel()
        await asyncio.wait_for(shutting, 1)
        assert world.log == ["shut"]

    asyncio.run(run())


async def enter(world: World) -> None:
    async with world.gate.admit(FIRST):
        pass


async def shut(world: World) -> None:
    async with world.gate.shut():
        world.log.append("shut")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"error": "PromotionTooLarge", "message": "too large"}, PromotionTooLarge),
        ({"error": "NoSuchError", "message": "odd"}, TaskVectorError),
        (RuntimeError("the engine is dead"), EngineUnavailable),
    ],
)
def test_a_failure_is_told_and_all_goes_on(
    fault: Mapping[str, str] | Exception, error: type[Exception]
) -> None:
    """The engine runs again, loadouts enter, and what is held is what the worker still needs."""

    async def run() -> None:
        world = World()
        await world.promoter.promote(FIRST)
        world.fault = fault
        with pytest.raises(error):
            await world.promoter.promote(SECOND)
        assert not world.is_paused
        assert world.held == (["a"] if world.promoted else [])
        await asyncio.wait_for(enter(world), 1)

    asyncio.run(run())


def test_requests_that_never_end_are_not_waited_for_for_ever() -> None:
    """Told by name; nothing is written."""

    async def run() -> None:
        world = World()
        world.drain = 0.01
        with pytest.raises(EngineUnavailable, match="did not end within"):
            await world.promoter.promote(FIRST)
        assert (world.log, world.held, world.promoted) == (["resume"], [], None)
        await asyncio.wait_for(enter(world), 1)

    asyncio.run(run())


def test_who_leaves_interrupts_nothing() -> None:
    """The promotion is done all the same, and the engine runs."""

    async def run() -> None:
        world = World()
        asking = asyncio.create_task(world.promoter.promote(FIRST))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.sleep(0.05)
        assert (world.promoted, world.is_paused, world.held) == (FIRST.canonical, False, ["a"])

    asyncio.run(run())


def test_no_room_in_the_pool_is_told_before_the_engine_is_paused() -> None:
    async def run() -> None:
        world = World()

        @contextlib.asynccontextmanager
        async def busy(_loadout: Loadout, *, is_promoted: bool) -> AsyncIterator[None]:
            raise PoolBusy("full")
            yield

        world.admit = busy  # type: ignore[method-assign]
        with pytest.raises(PoolBusy):
            await world.promoter.promote(FIRST)
        assert world.log == []

    asyncio.run(run())
