"""Copies for shadow variants go out a few at a time, and what is too much is dropped."""

import asyncio

from outfitter.experiments import shadow
from outfitter.experiments.shadow import Copy, Shadows


class Engine:
    """Counts what is sent, and answers when it is let."""

    def __init__(self) -> None:
        self.running = self.most = self.done = 0
        self.is_free = asyncio.Event()

    async def send(self) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.is_free.wait()
        finally:
            self.running -= 1
        self.done += 1


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_few_are_sent_at_once_and_the_rest_waits() -> None:
    """All in the end, and nothing is left behind."""

    async def scene() -> None:
        engine, shadows = Engine(), Shadows(lambda: True)
        for _ in range(20):
            shadows.offer(Copy(engine.send, 10))
        await settle()
        assert (engine.running, shadows.num_pending) == (shadow.MAX_RUNNING, 20)
        engine.is_free.set()
        await settle()
        assert (engine.done, engine.most) == (20, shadow.MAX_RUNNING)
        assert vars(shadows.numbers) == {"sent": 20, "failed": 0, "dropped": 0}
        assert shadows.num_pending == 0
        shadows.offer(Copy(engine.send, 10))
        await settle()
        assert engine.done == 21

    asyncio.run(scene())


def test_too_many_or_too_large_are_dropped() -> None:
    """Memory has bounds, whatever clients send."""

    async def scene() -> None:
        engine, shadows = Engine(), Shadows(lambda: True)
        for _ in range(shadow.MAX_RUNNING):
            shadows.offer(Copy(engine.send, 1))
        await settle()
        for _ in range(shadow.MAX_WAITING + 5):
            shadows.offer(Copy(engine.send, 1))
        assert shadows.numbers.dropped == 5
        await shadows.close()
        assert (engine.running, shadows.num_pending) == (0, 0)
        for _ in range(shadow.MAX_RUNNING):
            shadows.offer(Copy(engine.send, 1))
        await settle()
        shadows.offer(Copy(engine.send, shadow.MAX_BYTES))
        shadows.offer(Copy(engine.send, 1))
        assert shadows.numbers.dropped == 6
        await shadows.close()

    asyncio.run(scene())


def test_clients_come_first() -> None:
    """While one waits for its turn, no copy is sent."""

    async def scene() -> None:
        has_room = True
        engine, shadows = Engine(), Shadows(lambda: has_room)
        for _ in range(shadow.MAX_RUNNING + 3):
            shadows.offer(Copy(engine.send, 1))
        await settle()
        has_room = False
        engine.is_free.set()
        await settle()
        shadows.offer(Copy(engine.send, 1))
        assert engine.done == shadow.MAX_RUNNING
        assert shadows.numbers.dropped == 4

    asyncio.run(scene())


def test_one_that_fails_or_hangs_harms_no_other(monkeypatch) -> None:
    """It is counted."""
    monkeypatch.setattr(shadow, "TIMEOUT_S", 0.05)

    async def fail() -> None:
        raise RuntimeError("no")

    async def hang() -> None:
        await asyncio.sleep(60)

    async def scene() -> None:
        engine, shadows = Engine(), Shadows(lambda: True)
        engine.is_free.set()
        for send in (fail, hang, engine.send):
            shadows.offer(Copy(send, 1))
        await asyncio.sleep(0.2)
        assert vars(shadows.numbers) == {"sent": 1, "failed": 2, "dropped": 0}

    asyncio.run(scene())
