"""One tenant's slow uploads hold up nobody else's."""

import asyncio

from outfitter.slots import Slots


async def hold(slots: Slots, tenant: str, held: list[str], end: asyncio.Event) -> None:
    async with slots.taken(tenant):
        held.append(tenant)
        await end.wait()


async def turns() -> None:
    slots, held, end = Slots(4, 2), list[str](), asyncio.Event()
    tasks = [asyncio.create_task(hold(slots, "slow", held, end)) for _ in range(9)]
    await asyncio.sleep(0.01)
    assert held == ["slow"] * 2
    tasks += [asyncio.create_task(hold(slots, name, held, end)) for name in "bcd"]
    await asyncio.sleep(0.01)
    assert held == ["slow", "slow", "b", "c"]
    tasks[5].cancel()
    end.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(held) == 11
    assert len(slots) == 0


def test_a_tenant_takes_its_part_and_no_more() -> None:
    """Whoever else comes has a slot; all of them are bounded, and nobody is remembered."""
    asyncio.run(turns())
