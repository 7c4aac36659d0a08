"""Counts are shared through Valkey, and kept while it is away."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from outfitter.quotas import counters
from outfitter.quotas.count import Count
from outfitter.quotas.counters import Counters
from tests import services


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def one(amount: int = 1, window: int = 7) -> list[Count]:
    return [Count("acme:requests", window, amount, 60)]


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine may be busy with other tests."""
    monkeypatch.setattr(counters, "TIMEOUT_S", 2.0)


def test_alone_a_server_counts_for_itself() -> None:
    """Per window; a new one begins at zero, and reading adds nothing."""

    async def test() -> None:
        alone = Counters(None, "p")
        assert [await alone.count(one()) for _ in range(3)] == [[1], [2], [3]]
        assert await alone.count(one(0)) == [3]
        assert await alone.count(one(5, window=8)) == [5]
        assert alone.stats() == {"is_shared": False, "is_up": True, "shared": 0, "own": 0}

    run(test)


def test_two_servers_on_one_valkey_share_one_count(redis_url: str, redis_prefix: str) -> None:
    """Each sees what the other added, in every window; another prefix is another count."""

    async def test() -> None:
        first, second = (Counters(redis_url, redis_prefix) for _ in range(2))
        other = Counters(redis_url, redis_prefix + "x")
        assert await first.count(one()) == [1]
        assert await second.count(one(4)) == [5]
        assert await first.count([*one(0), *one(2, window=8)]) == [5, 2]
        assert await second.count(one(0, window=8)) == [2]
        assert await other.count(one(0)) == [0]
        for each in (first, second, other):
            await each.close()

    run(test)


def test_a_socket_is_as_good_as_a_port(tmp_path: Path) -> None:
    """The same count by either."""

    async def test() -> None:
        with services.valkey(tmp_path) as server:
            first, second = Counters(server.url, "p"), Counters(f"unix://{server.socket}", "p")
            assert await first.count(one()) == [1]
            assert await second.count(one()) == [2]
            assert second.stats()["shared"] == 1
            await first.close()
            await second.close()

    run(test)


def test_a_hundred_at_once_lose_nothing(redis_url: str, redis_prefix: str) -> None:
    """The last number is the sum."""

    async def test() -> None:
        first, second = (Counters(redis_url, redis_prefix) for _ in range(2))
        jobs = [each.count(one()) for each in (first, second) for _ in range(50)]
        assert max(number for [number] in await asyncio.gather(*jobs)) == 100
        await first.close()
        await second.close()

    run(test)


def test_who_asks_at_once_shares_a_round_trip(redis_url: str, redis_prefix: str) -> None:
    """And is told its own place in the count, as if it had asked alone."""

    async def test() -> None:
        each = Counters(redis_url, redis_prefix)
        await each.count(one())
        client = services.redis.Redis.from_url(redis_url)
        before = client.info("stats")["total_commands_processed"]
        jobs = [each.count([*one(), Count("b", 1, number, 60)]) for number in range(50)]
        answers = await asyncio.gather(*jobs)
        after = client.info("stats")["total_commands_processed"]
        assert answers == [[2 + n, sum(range(n + 1))] for n in range(50)]
        assert after - before < 25
        await each.close()

    run(test)


def test_what_is_over_is_forgotten(redis_url: str, redis_prefix: str) -> None:
    """Keys expire by themselves."""

    async def test() -> None:
        each = Counters(redis_url, redis_prefix)
        await each.count(one())
        await each.close()

    run(test)
    client = services.redis.Redis.from_url(redis_url)
    keys = list(client.scan_iter(f"*{redis_prefix}*"))
    assert len(keys) == 1
    assert 60 < client.ttl(keys[0]) <= 120


def test_while_valkey_is_away_a_server_goes_on_with_its_own_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one warning, and the shared count is used again when it is back."""
    monkeypatch.setattr(counters, "AWAY_S", 0.2)

    async def test() -> None:
        with services.valkey(tmp_path) as server:
            first, second = (Counters(server.url, "p") for _ in range(2))
            await first.count(one(3))
            await second.count(one(2))
            assert await first.count(one()) == [6]
            server.kill()
            assert [await first.count(one()) for _ in range(20)] == [[n] for n in range(5, 25)]
            assert not first.stats()["is_up"]
            assert first.stats()["own"] == 20
            server.start()
            await asyncio.sleep(0.3)
            assert await first.count(one()) == [25]
            assert first.stats()["is_up"]
            await second.count(one(40))
            assert await first.count(one(0)) == [41]
            await first.close()
            await second.close()

    with caplog.at_level(logging.WARNING):
        run(test)
    told = [record.message for record in caplog.records if "for quotas" in record.message]
    assert len(told) == 2
    assert "is left alone until it answers again" in told[0]
    assert "answers again" in told[1]


def test_a_valkey_that_hangs_costs_a_request_no_more_than_the_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times, and then nothing."""
    monkeypatch.setattr(counters, "TIMEOUT_S", 0.05)

    async def test() -> None:
        with services.valkey(tmp_path) as server:
            each = Counters(server.url, "p")
            await each.count(one(), timeout_s=5.0)
            server.pause()
            began = time.monotonic()
            numbers = [await each.count(one()) for _ in range(100)]
            assert time.monotonic() - began < 100 * counters.TIMEOUT_S / 2
            assert numbers == [[n] for n in range(2, 102)]
            server.resume()
            await each.close()

    run(test)


def test_a_wrong_password_is_never_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The warning names the server."""

    async def test() -> None:
        with services.valkey(tmp_path) as server:
            server.client.config_set("requirepass", "right")
            each = Counters(server.url.replace("redis://", "redis://:hunter2@"), "p")
            for _ in range(4):
                assert await each.count(one())
            await each.close()

    run(test)
    assert "for quotas" in caplog.text
    assert "hunter2" not in caplog.text
