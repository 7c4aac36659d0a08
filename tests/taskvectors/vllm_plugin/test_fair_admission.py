"""Room is given in turn by tenant: a flood holds up nobody else, and everybody is served."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskvectors.errors import PoolBusy
from taskvectors.format import write_vector
from taskvectors.spec import Loadout, LoadoutItem
from taskvectors.store import DirectoryStore
from taskvectors.vector import BaseInfo, DenseDelta, TaskVector
from taskvectors.vllm_plugin.admission import Admission
from taskvectors.vllm_plugin.config import PluginConfig
from taskvectors.vllm_plugin.tenant import ASKING, UNTAGGED, Tenant
from tests.taskvectors.vllm_plugin.test_admission import FakeWorker, admission_of
from tests.taskvectors.vllm_plugin.test_endpoint import BODIES, SCOPE, Client

SIZE, NUM_VECTORS = 10, 24
NBYTES = 4 * SIZE
A, B, C = Tenant("a"), Tenant("b"), Tenant("c")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A store with vectors of NBYTES each on the device, and their digests."""
    folder = tmp_path_factory.mktemp("fair")
    store, digests = DirectoryStore(folder / "store"), []
    for seed in range(NUM_VECTORS):
        values = np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)
        vector = TaskVector(BaseInfo("base", None), {"norm.weight": DenseDelta(values)})
        write_vector(vector, folder / "vector.safetensors")
        digests.append(store.add(folder / "vector.safetensors"))
    return folder / "store", digests


class World:
    """An admission with room for six vectors."""

    def __init__(self, store: tuple[Path, list[str]], **settings: Any) -> None:
        values = {"pool_bytes": 6 * NBYTES, "admission_timeout_s": 20.0, **settings}
        self.digests = store[1]
        self.worker = FakeWorker()
        self.admission: Admission = admission_of(
            PluginConfig(store=store[0], **values), self.worker
        )

    @contextlib.asynccontextmanager
    async def held(self, tenant: Tenant, *numbers: int) -> AsyncIterator[None]:
        ASKING.set(tenant)
        loadout = Loadout.build([LoadoutItem(self.digests[number], 1.0) for number in numbers])
        async with self.admission.admit(loadout):
            yield

    def ask(self, tenant: Tenant, *numbers: int, seconds: float = 0.005) -> "asyncio.Task[float]":
        """A request; its result is how long it waited."""

        async def use() -> float:
            began = time.monotonic()
            async with self.held(tenant, *numbers):
                waited = time.monotonic() - began
                await asyncio.sleep(seconds)
                return waited

        return asyncio.create_task(use())

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0.005)


@pytest.fixture
def run(store: tuple[Path, list[str]]) -> Callable[..., None]:
    def start(test: Callable[[World], Awaitable[None]], **settings: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(50):
                await test(World(store, **settings))

        asyncio.run(bounded())

    return start


def test_a_flood_of_cold_vectors_leaves_another_tenants_vectors_in_the_pool(run: Callable) -> None:
    """B's three stay resident through a hundred requests of A for twenty others."""

    async def test(world: World) -> None:
        for number in range(3):
            await world.ask(B, number)
        dice = random.Random(0)
        await asyncio.gather(*(world.ask(A, dice.randrange(3, 24)) for _ in range(100)))
        assert not set(world.worker.evictions) & set(world.digests[:3])
        loads = list(world.worker.loads)
        for number in range(3):
            await world.ask(B, number)
        assert world.worker.loads == loads, "nothing had to be loaded again"

    run(test)


def test_who_waits_for_its_own_share_is_passed_by(run: Callable) -> None:
    """A's line is long, and B, who comes last, has room at once."""

    async def test(world: World) -> None:
        await world.ask(B, 20)
        flood = [world.ask(A, number, seconds=0.3) for number in range(12)]
        await world.settle()
        assert world.admission.stats()["waiting"] > 0
        assert await world.ask(B, 21) < 0.15
        assert sum(job.done() for job in flood) <= 3
        await asyncio.gather(*flood)

    run(test)


def test_a_flood_that_lasts_gains_nothing_by_its_patience(run: Callable) -> None:
    """Though each of A's requests has waited for long, and A had all the room before B came: B
    soon has its share back and keeps it, and it hardly waits.
    """

    async def test(world: World) -> None:
        stop, dice = False, random.Random(2)

        async def flood() -> None:
            while not stop:
                with contextlib.suppress(PoolBusy):
                    await world.ask(A, dice.randrange(3, 24), seconds=0.05)

        floods = [asyncio.create_task(flood()) for _ in range(60)]
        await asyncio.sleep(0.5)
        waits, until = [], time.monotonic() + 3.0
        while time.monotonic() < until:
            waits.append(await world.ask(B, len(waits) % 3))
            await asyncio.sleep(0.02)
            if len(waits) == 12:
                before = list(world.worker.evictions)
        stop = True
        await asyncio.gather(*floods)
        assert sum(waits) / len(waits) < 0.25
        assert len(waits) > 24
        later = world.worker.evictions[len(before) :]
        assert len(later) > 12
        assert not set(later) & set(world.digests[:3])

    run(test, admission_timeout_s=0.8)


def test_room_is_given_in_turn_by_tenant(run: Callable) -> None:
    """Where all of it is in use, the next goes to who has waited for fewer turns."""

    async def test(world: World) -> None:
        order: list[str] = []

        async def use(tenant: Tenant, number: int) -> None:
            async with world.held(tenant, number):
                order.append(tenant.tag)
                await asyncio.sleep(0.01)

        async with world.held(UNTAGGED, 0, 23):
            jobs = [asyncio.create_task(use(A, 1 + number)) for number in range(6)]
            await world.settle()
            jobs += [asyncio.create_task(use(B, 7 + number)) for number in range(3)]
            await world.settle()
        await asyncio.gather(*jobs)
        assert sorted(order) == ["a"] * 6 + ["b"] * 3
        assert order.index("b") <= 3
        assert "bbb" not in "".join(order)

    run(test, pool_bytes=2 * NBYTES)


def test_what_is_promoted_counts_for_no_tenant(run: Callable) -> None:
    """It takes room from all alike, and once it is let go of, the only tenant has all the room."""

    async def test(world: World) -> None:
        loadout = Loadout.build([LoadoutItem(world.digests[0], 1.0)])
        await world.ask(A, 0, 1)
        async with world.admission.admit(loadout, is_promoted=True):
            assert await world.ask(A, 2, 3, 4, 5, 6) < 0.5
            assert world.admission.tenants().keys() == {"a"}
        assert await world.ask(A, 7, 8, 9, 10, 11, 12) < 0.5
        async with world.held(A, 1, 2, 3, 4, 5, 6):
            promotion = asyncio.create_task(_promote(world.admission, loadout))
            await world.settle()
            assert not promotion.done(), "it waits for room like everybody"
        await promotion

    run(test)


async def _promote(admission: Admission, loadout: Loadout) -> None:
    async with admission.admit(loadout, is_promoted=True):
        pass


def test_everybody_is_served_in_the_end(run: Callable) -> None:
    """Also a loadout larger than its share while others never pause: patience takes the room."""

    async def test(world: World) -> None:
        dice, stop = random.Random(1), False

        async def traffic(tenant: Tenant) -> int:
            served = 0
            while not stop:
                numbers = dice.sample(range(24), dice.randint(1, 2))
                await world.ask(tenant, *numbers, seconds=dice.random() / 100)
                served += 1
            return served

        others = [asyncio.create_task(traffic(tenant)) for tenant in (A, B, A, B)]
        await world.settle()
        big = world.ask(C, 0, 1, 2, 3, 4)
        waited = await big
        assert waited < 3.0, "half of its time is patience, the rest is its turn"
        stop = True
        assert all(await asyncio.gather(*others))

    run(test, admission_timeout_s=3.0)


def test_a_full_line_sends_away_the_newest_of_who_has_most(run: Callable) -> None:
    """A's last request is told to come back; B's takes its place, and is served."""

    async def test(world: World) -> None:
        async with world.held(UNTAGGED, 0, 1, 2, 3, 4, 5):
            flood = [world.ask(A, 6 + number) for number in range(4)]
            await world.settle()
            late = world.ask(B, 10)
            await world.settle()
            [sent] = [job for job in flood if job.done()]
            with pytest.raises(PoolBusy, match="mostly with requests of this tenant"):
                await sent
            assert world.admission.stats()["waiting"] == 4
        await asyncio.gather(*(job for job in flood if job is not sent), late)

    run(test, max_waiting=4)


def test_who_leaves_the_line_frees_its_place(run: Callable) -> None:
    """And those behind go on."""

    async def test(world: World) -> None:
        async with world.held(UNTAGGED, 0, 1, 2, 3, 4, 5):
            jobs = [world.ask(tenant, 6) for tenant in (A, A, B)]
            await world.settle()
            jobs[0].cancel()
            await asyncio.wait({jobs[0]})
            assert world.admission.stats()["waiting"] == 2
        await asyncio.gather(*jobs[1:])

    run(test)


def test_the_numbers_tell_who_holds_what(run: Callable) -> None:
    """By tag; what two use counts for each in part."""

    async def test(world: World) -> None:
        await world.ask(Tenant("a", 0.75), 0, 1)
        await world.ask(B, 1)
        assert world.admission.tenants() == {
            "a": {"nbytes": 60, "vectors": 1.5, "share": 0.75, "waiting": 0},
            "b": {"nbytes": 20, "vectors": 0.5, "share": 0.25, "waiting": 0},
        }

    run(test)


def test_a_requests_headers_name_its_tenant_while_it_is_served() -> None:
    """Each its own, and a wrong one is refused before anything is held."""

    async def test() -> None:
        seen: list[Tenant] = []

        async def ask(*headers: tuple[bytes, bytes]) -> Client:
            client = Client()
            client.service.gate.set()
            serve = client.service.serve

            def watched(loadout: Loadout) -> contextlib.AbstractAsyncContextManager[None]:
                seen.append(ASKING.get())
                return serve(loadout)

            client.service.serve = watched  # type: ignore[method-assign]
            scope = {**SCOPE, "headers": [*SCOPE["headers"], *headers]}  # type: ignore[misc]
            for message in BODIES[0]:
                client.arriving.put_nowait(message)
            await client.middleware(scope, client.arriving.get, client._send)
            return client

        tag, share = (b"x-taskvectors-tenant", b"t1"), (b"x-taskvectors-share", b"0.5")
        await asyncio.gather(ask(tag, share), ask())
        assert set(seen) == {Tenant("t1", 0.5), UNTAGGED}
        refused = await ask((b"x-taskvectors-tenant", b"no such tag"))
        assert refused.sent[0]["status"] == 400
        assert len(seen) == 2

    asyncio.run(test())
