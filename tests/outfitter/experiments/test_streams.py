"""The stream: events outlive whoever read them, and Redis may go and come back."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from outfitter.control.experiments.event import Event
from outfitter.control.prices import Prices
from outfitter.experiments.events.recorder import Recorder
from outfitter.experiments.events.streams import Stream
from taskvectors.errors import TierUnavailable
from tests import services
from tests.outfitter.experiments.making import event, looped


def recorder(folder: Path, kept: list[Event], url: str | None = None, prefix: str = "") -> Recorder:
    def add(events: Sequence[Event]) -> None:
        kept.extend(events)

    return Recorder(folder, add, lambda: None, Prices(), url, prefix)


async def closed(one: Recorder) -> None:
    """It begins to run, and is stopped at once."""
    one.close()
    await one.run()


def ids(kept: list[Event]) -> list[str]:
    return sorted(one.request_id for one in kept)


@looped
async def test_what_is_appended_is_read_once_by_one_of_many(
    redis_url: str, redis_prefix: str
) -> None:
    """And gone when it is done."""
    one, other = (Stream(redis_url, redis_prefix) for _ in range(2))
    for start in range(0, 1_200, 50):
        await asyncio.gather(*(one.append(b"%d" % i) for i in range(start, start + 50)))
    found: list = []
    while entries := await one.read() or await other.read():
        found += entries
        await one.done([id_ for id_, _ in entries])
    assert sorted(int(line) for _, line in found) == list(range(1_200))
    assert await one.read() == []
    await one.close()
    await other.close()


@looped
async def test_what_the_dead_have_read_is_claimed(redis_url: str, redis_prefix: str) -> None:
    """After a while, by whoever lives."""
    dead = Stream(redis_url, redis_prefix)
    await dead.append(b"a")
    [(_, line)] = await dead.read()
    assert line == b"a"
    alive = Stream(redis_url, redis_prefix, claim_after_s=0.2)
    assert await alive.read() == []
    await asyncio.sleep(0.4)
    [(id_, line)] = await alive.read()
    assert line == b"a"
    await alive.done([id_])
    await asyncio.sleep(0.4)
    assert await alive.read() == []
    for stream in (dead, alive):
        await stream.close()


@looped
async def test_a_stream_that_is_full_takes_no_more(redis_url: str, redis_prefix: str) -> None:
    """Until somebody has written what waits."""
    stream = Stream(redis_url, redis_prefix, max_length=2)
    await stream.append(b"a")
    await stream.append(b"b")
    with pytest.raises(TierUnavailable, match="2 events wait"):
        await stream.append(b"c")
    await stream.done([id_ for id_, _ in await stream.read()])
    await stream.append(b"c")
    await stream.close()


@looped
async def test_redis_may_die_and_come_back_empty(tmp_path: Path) -> None:
    """Meanwhile the journal takes the events; each is written once."""
    kept: list[Event] = []
    with services.valkey(tmp_path) as valkey:
        one = recorder(tmp_path / "events", kept, valkey.url, "p")
        await one.append(event("r1"))
        assert await one.writer.flush()
        valkey.kill()
        for i in (2, 3, 4, 5):
            await one.append(event(f"r{i}"))
        assert one.stats()["journal_bytes"] > 0
        assert await one.writer.flush()
        assert ids(kept) == ["r1", "r2", "r3", "r4", "r5"]
        assert not one.stats()["is_up"]
        valkey.start()
        await asyncio.sleep(1.1)
        await one.append(event("r6"))
        assert one.stats()["is_up"]
        assert await one.writer.flush()
        assert ids(kept)[-1] == "r6"
        await closed(one)


@looped
async def test_a_redis_that_hangs_holds_nobody_up(tmp_path: Path) -> None:
    """For more than a moment; what it took after all counts once, by its key."""
    kept: list[Event] = []
    with services.valkey(tmp_path) as valkey:
        one = recorder(tmp_path / "events", kept, valkey.url, "p")
        await one.append(event("r1"))
        valkey.pause()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.gather(*(one.append(event(f"h{i}")) for i in range(50)))
        assert loop.time() - began < 1.0
        valkey.resume()
        await asyncio.sleep(1.1)
        assert await one.writer.flush()
        await asyncio.sleep(1.1)
        assert await one.writer.flush()
        assert {*ids(kept)} == {"r1", *(f"h{i}" for i in range(50))}
        await closed(one)


@looped
async def test_a_client_that_leaves_takes_no_event_along(redis_url: str, redis_prefix: str) -> None:
    """Its request is recorded though it is cancelled while that happens."""
    stream = Stream(redis_url, redis_prefix)
    kept: list[Event] = []
    one = recorder(Path("/nonexistent"), kept, redis_url, redis_prefix)
    task = asyncio.create_task(one.append(event("r1")))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    await closed(one)
    assert ids(kept) == ["r1"]
    await stream.close()
