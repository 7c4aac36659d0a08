"""Redis as a tier, on a real Valkey that is killed, paused, emptied, filled and lied to."""

import contextlib
import hashlib
import logging
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from taskvectors.errors import TierUnavailable, UnsupportedEngine, VectorNotFound
from taskvectors.store.redis_chunks import CHUNK_BYTES
from taskvectors.store.redis_tier import RedisTier
from taskvectors.store.settings import TierSettings
from tests import services
from tests.taskvectors.store import relays

SEED = 11
SIZE = 2 * CHUNK_BYTES + 12_345


def a_file(number: int = 0, size: int = SIZE) -> tuple[str, bytes]:
    data = random.Random(SEED + number).randbytes(size)
    return hashlib.sha256(data).hexdigest(), data


DIGEST, DATA = a_file()


@pytest.fixture
def settings(redis_url: str, redis_prefix: str) -> TierSettings:
    return TierSettings(redis_url=redis_url, redis_prefix=redis_prefix)


@pytest.fixture
def tier(settings: TierSettings) -> Iterator[RedisTier]:
    found = RedisTier(settings)
    yield found
    found.close()


@pytest.fixture
def client(redis_url: str) -> redis.Redis:
    return redis.Redis.from_url(redis_url, protocol=2)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[services.Valkey]:
    with services.valkey(tmp_path) as found:
        yield found


def settings_of(server: services.Valkey, **more: object) -> TierSettings:
    return replace(TierSettings(redis_url=server.url, redis_timeout_s=0.5), **more)  # type: ignore[arg-type]


def put(tier: RedisTier, digest: str = DIGEST, data: bytes = DATA) -> bool:
    return tier.put(digest, memoryview(data))


def load(
    tier: RedisTier,
    digest: str = DIGEST,
    size: int = SIZE,
    progress: Callable[[int], None] = lambda _: None,
) -> bytes:
    buffer = bytearray(size)
    tier.fill(digest, memoryview(buffer), progress)
    return bytes(buffer)


def test_what_one_replica_puts_another_reads(tier: RedisTier, settings: TierSettings) -> None:
    assert tier.size(DIGEST) is None
    assert put(tier)
    assert put(tier), "again is the same as once"
    other, told = RedisTier(settings), list[int]()
    assert other.size(DIGEST) == SIZE
    assert load(other, progress=told.append) == DATA
    assert told == sorted(told)
    assert told[-1] == SIZE
    stats = other.stats()
    assert (stats.hits, stats.misses, stats.read_bytes) == (1, 0, SIZE)
    assert tier.stats().written_bytes == SIZE
    assert tier.stats().nbytes == SIZE


@pytest.mark.parametrize("size", [1, 7, 8, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_every_size_comes_back(tier: RedisTier, size: int) -> None:
    digest, data = a_file(1, size)
    assert put(tier, digest, data)
    assert load(tier, digest, size) == data


def test_progress_is_true_when_it_is_told(tier: RedisTier) -> None:
    """Whoever hashes along reads only bytes that are in place."""
    put(tier)
    buffer = bytearray(SIZE)
    view = memoryview(buffer)

    def check(count: int) -> None:
        assert view[:count] == DATA[:count]

    tier.fill(DIGEST, view, check)


def test_the_head_is_read_without_the_rest(tier: RedisTier) -> None:
    assert tier.head(DIGEST, 100) is None
    put(tier)
    assert tier.head(DIGEST, 100) == DATA[:100]
    assert tier.stats().read_bytes == 100
    assert tier.head(DIGEST, CHUNK_BYTES + 5) == DATA[: CHUNK_BYTES + 5]
    assert tier.head(DIGEST, 10 * SIZE) == DATA


def test_what_is_dropped_is_gone(tier: RedisTier, client: redis.Redis, redis_prefix: str) -> None:
    put(tier)
    tier.drop(DIGEST)
    tier.drop(DIGEST)
    assert tier.size(DIGEST) is None
    assert client.keys(f"{redis_prefix}:*") == []


def damage(client: redis.Redis, key: str, field: str, kind: str) -> None:
    value = client.hget(key, field)
    assert value is not None
    middle = len(value) // 2
    changes = {
        "a bit": value[:middle] + bytes([value[middle] ^ 1]) + value[middle + 1 :],
        "truncated": value[:-1],
        "longer": value + b"x",
        "zeros": bytes(len(value)),
        "empty": b"",
    }
    if kind == "missing":
        client.hdel(key, field)
    else:
        client.hset(key, field, changes[kind])


KINDS = ("a bit", "truncated", "longer", "zeros", "empty", "missing")


@pytest.mark.parametrize("field", ["0", "2", "m"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_part_is_dropped_and_fetched_anew(
    tier: RedisTier, client: redis.Redis, redis_prefix: str, field: str, kind: str
) -> None:
    put(tier)
    key = f"{redis_prefix}:{{{DIGEST}}}"
    damage(client, key, field, kind)
    with pytest.raises(VectorNotFound):
        load(tier)
    assert tier.stats().corrupt == 1
    assert client.exists(key) == 0
    assert tier.size(DIGEST) is None
    assert put(tier)
    assert load(tier) == DATA


def test_a_damaged_chunk_is_never_given_as_a_head(
    tier: RedisTier, client: redis.Redis, redis_prefix: str
) -> None:
    put(tier)
    damage(client, f"{redis_prefix}:{{{DIGEST}}}", "0", "a bit")
    assert tier.head(DIGEST, 10) is None
    assert tier.stats().corrupt == 1


def test_a_key_that_holds_something_else_is_dropped(
    tier: RedisTier, client: redis.Redis, redis_prefix: str
) -> None:
    client.set(f"{redis_prefix}:{{{DIGEST}}}", "a string")
    assert tier.size(DIGEST) is None
    assert tier.stats().corrupt == 1
    assert put(tier)
    assert load(tier) == DATA


def test_a_huge_manifest_is_not_read(
    tier: RedisTier, client: redis.Redis, redis_prefix: str
) -> None:
    client.hset(f"{redis_prefix}:{{{DIGEST}}}", "m", bytes(8 << 20))
    client.hset(f"{redis_prefix}:{{{DIGEST}}}", "0", b"x")
    before = int(client.info("stats")["total_net_output_bytes"])
    assert tier.size(DIGEST) is None
    assert int(client.info("stats")["total_net_output_bytes"]) - before < 1 << 20
    assert tier.stats().corrupt == 1


def test_a_file_of_another_size_than_asked_is_dropped(tier: RedisTier) -> None:
    put(tier)
    with pytest.raises(VectorNotFound, match="bytes, not"):
        load(tier, size=SIZE + 1)
    assert tier.size(DIGEST) is None


def test_it_is_forgotten_when_nobody_reads_it(tier: RedisTier, settings: TierSettings) -> None:
    short = RedisTier(replace(settings, redis_ttl_s=2))
    other = a_file(1)
    put(short)
    put(short, *other)
    deadline = time.monotonic() + 20
    while short.size(other[0]) is not None:  # asking is reading: ask rarely
        load(short)
        assert time.monotonic() < deadline
        for _ in range(5):
            time.sleep(0.5)
            load(short)
    assert load(short) == DATA, "reading renews it"


def test_what_expired_leaves_the_budget(settings: TierSettings, client: redis.Redis) -> None:
    short = RedisTier(replace(settings, redis_ttl_s=1, redis_bytes=3 * SIZE))
    put(short)
    deadline = time.monotonic() + 20
    while client.exists(f"{settings.redis_prefix}:{{{DIGEST}}}"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    put(short, *a_file(1))
    assert short.stats().nbytes == SIZE
    assert short.stats().evictions == 0


def test_replicas_share_a_budget_and_the_least_recently_used_goes(settings: TierSettings) -> None:
    small = replace(settings, redis_bytes=3 * SIZE)
    one, two = RedisTier(small), RedisTier(small)
    files = [a_file(number) for number in range(4)]
    for tier, file in zip((one, two, one), files, strict=False):
        put(tier, *file)
        time.sleep(0.005)  # the clock of the index ticks in milliseconds
    load(two, files[0][0])
    time.sleep(0.005)
    put(two, *files[3])
    assert [one.size(digest) for digest, _ in files] == [SIZE, None, SIZE, SIZE]
    assert two.stats().evictions == 1
    assert two.stats().nbytes == 3 * SIZE


def test_a_file_larger_than_the_budget_is_not_kept(
    settings: TierSettings, client: redis.Redis
) -> None:
    tier = RedisTier(replace(settings, redis_bytes=SIZE - 1))
    assert put(tier) is False
    assert client.keys(f"{settings.redis_prefix}:*") == []


def test_many_writers_at_once_keep_within_the_budget(
    settings: TierSettings, client: redis.Redis
) -> None:
    small = replace(settings, redis_bytes=4 * SIZE)
    files = [a_file(number) for number in range(6)]

    def work(seed: int) -> None:
        tier, order = RedisTier(small), random.Random(seed)
        for _ in range(12):
            digest, data = order.choice(files)
            put(tier, digest, data)
            with contextlib.suppress(VectorNotFound):  # another's put needed the room
                assert load(tier, digest) == data

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(SEED, SEED + 4)))
    held = [key for key in client.keys(f"{small.redis_prefix}:*") if b"files" not in key]
    assert 1 <= len(held) <= 4
    assert all(key.count(b":") == settings.redis_prefix.count(":") + 1 for key in held), held


def test_a_lost_index_heals_as_files_are_read(settings: TierSettings, client: redis.Redis) -> None:
    tier = RedisTier(replace(settings, redis_bytes=2 * SIZE))
    put(tier)
    client.delete(f"{settings.redis_prefix}:{{files}}")
    load(tier)
    put(tier, *a_file(1))
    assert tier.stats().nbytes == 2 * SIZE
    put(tier, *a_file(2))
    assert tier.stats().nbytes == 2 * SIZE
    assert tier.stats().evictions == 1


def test_killed_while_a_file_is_read(server: services.Valkey) -> None:
    tier = RedisTier(settings_of(server))
    put(tier)
    with pytest.raises(TierUnavailable):
        load(tier, progress=lambda _: server.kill())
    with pytest.raises(TierUnavailable):
        tier.size(DIGEST)
    server.start()
    assert tier.size(DIGEST) is None, "it came back empty"
    assert put(tier)
    assert load(tier) == DATA


def test_emptied_while_a_file_is_read(server: services.Valkey) -> None:
    tier = RedisTier(settings_of(server))
    put(tier)
    with pytest.raises(VectorNotFound):
        load(tier, progress=lambda _: server.client.flushall())
    assert put(tier)
    assert load(tier) == DATA
    assert tier.stats().nbytes == SIZE


def test_a_hanging_server_is_waited_for_once_and_then_left_alone(
    server: services.Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    tier = RedisTier(settings_of(server, redis_timeout_s=0.3))
    put(tier)
    server.pause()
    try:
        for _ in range(20):
            with pytest.raises(TierUnavailable):
                load(tier)
    finally:
        server.resume()
    assert not tier.stats().is_up
    assert tier.stats().errors == 20
    warnings = [record.message for record in caplog.records]
    assert len(warnings) == 1
    assert "did not answer in time" in warnings[0]


def test_a_server_without_memory_keeps_what_it_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    options = ("--maxmemory", "16mb", "--maxmemory-policy", "noeviction")
    with services.valkey(tmp_path, *options) as server:
        tier = RedisTier(settings_of(server))
        files = [a_file(number) for number in range(6)]
        kept = [put(tier, *file) for file in files]
        assert kept[0]
        assert kept[-2:] == [False, False]
        assert load(tier) == DATA
        assert tier.stats().is_up
        assert sum("takes no more files" in record.message for record in caplog.records) == 1
        held = [key for key in server.client.keys("*") if b"files" not in key]
        assert len(held) == sum(kept), "no part of a file is left"
        tier.drop(DIGEST)
        assert put(tier, *files[-1]), "there is room again"


def test_a_server_that_evicts_by_itself_is_fine(tmp_path: Path) -> None:
    options = ("--maxmemory", "16mb", "--maxmemory-policy", "allkeys-lru")
    with services.valkey(tmp_path, *options) as server:
        tier = RedisTier(settings_of(server))
        found = 0
        for number in range(12):
            digest, data = a_file(number)
            put(tier, digest, data)
            try:
                assert load(tier, digest) == data
                found += 1
            except VectorNotFound:
                continue
        assert found > 6
        assert tier.stats().is_up


def test_a_wrong_password_is_named_and_never_shown(tmp_path: Path) -> None:
    with services.valkey(tmp_path) as server:
        server.client.config_set("requirepass", "right-one")
        bare = server.url.removeprefix("redis://")
        tier = RedisTier(settings_of(server, redis_url=f"redis://:wr0ng-one@{bare}"))
        with pytest.raises(TierUnavailable, match="refuses the user or password") as caught:
            tier.size(DIGEST)
        assert "wr0ng" not in str(caught.value)
        right = RedisTier(settings_of(server, redis_url=f"redis://:right-one@{bare}"))
        assert put(right)
        assert load(right) == DATA


def test_a_unix_socket(server: services.Valkey) -> None:
    tier = RedisTier(settings_of(server, redis_url=f"unix://{server.socket}"))
    assert put(tier)
    assert load(tier) == DATA


def test_tls_is_checked_against_the_authority(server: services.Valkey, tmp_path: Path) -> None:
    """The Valkey here is built without TLS, so that something else ends it in front."""
    certificate = relays.self_signed(tmp_path)
    with relays.tls_in_front_of(server.port, certificate) as port:
        url = f"rediss://localhost:{port}/0?ssl_ca_certs={certificate}"
        tier = RedisTier(settings_of(server, redis_url=url, redis_timeout_s=5))
        assert put(tier)
        assert load(tier) == DATA
        stranger = RedisTier(settings_of(server, redis_url=f"rediss://localhost:{port}/0"))
        with pytest.raises(TierUnavailable, match="certificate"):
            stranger.size(DIGEST)


def test_a_server_that_trickles_is_not_waited_for(server: services.Valkey) -> None:
    """Each byte comes in time, the chunk does not."""
    put(RedisTier(settings_of(server)))
    with relays.slow_in_front_of(server.port) as port:
        url = f"redis://127.0.0.1:{port}/0"
        tier = RedisTier(settings_of(server, redis_url=url, redis_timeout_s=0.5))
        with pytest.raises(TierUnavailable, match="in time"):
            load(tier)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://:s3cret@h/0", "unsupported scheme 'http'"),
        ("redis://:s3c/ret@h:1/0", "cannot be used"),
        ("redis://:s3cret@h:port/0", "cannot be used"),
        ("redis://:s3cret@[h/0", "cannot be read"),
        ("redis://:s3cret@h/0?nonsense=1", "options after"),
        ("unix:///x.sock?cluster=true&password=s3cret", "not unix"),
        ("", "unsupported scheme"),
    ],
)
def test_a_wrong_url_is_refused_without_its_password(url: str, message: str) -> None:
    with pytest.raises(UnsupportedEngine, match=message) as caught:
        RedisTier(TierSettings(redis_url=url))
    assert "s3c" not in str(caught.value)


def test_making_a_tier_waits_for_nobody() -> None:
    """The server is asked first when a file is."""
    for url in ("redis://192.0.2.1:6379/0", "redis+cluster://192.0.2.1:6379"):
        RedisTier(TierSettings(redis_url=url, redis_timeout_s=60))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[services.Valkey]:
    """One node that has all slots is a real cluster."""
    with services.valkey(tmp_path, "--cluster-enabled", "yes") as server:
        server.client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        deadline = time.monotonic() + 20
        while server.client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield server


@pytest.mark.parametrize(
    "form", ["redis+cluster://127.0.0.1:{}", "redis://127.0.0.1:{}/0?cluster=true"]
)
def test_a_cluster(cluster: services.Valkey, form: str) -> None:
    """All commands on a file are on keys of one slot; the budget holds across slots."""
    settings = settings_of(cluster, redis_url=form.format(cluster.port), redis_bytes=2 * SIZE)
    tier = RedisTier(settings)
    for number in range(3):
        digest, data = a_file(number)
        assert put(tier, digest, data)
        assert load(tier, digest) == data
        assert tier.head(digest, 9) == data[:9]
    assert tier.stats().evictions == 1
    tier.drop(digest)
    assert tier.size(digest) is None


def test_a_cluster_that_is_away_is_unavailable(cluster: services.Valkey) -> None:
    tier = RedisTier(settings_of(cluster, redis_url=f"redis+cluster://127.0.0.1:{cluster.port}"))
    put(tier)
    cluster.kill()
    for _ in range(4):
        with pytest.raises(TierUnavailable):
            load(tier)
    assert not tier.stats().is_up
    never = RedisTier(settings_of(cluster, redis_url=f"redis+cluster://127.0.0.1:{cluster.port}"))
    with pytest.raises(TierUnavailable):
        never.size(DIGEST)


@pytest.mark.parametrize(
    ("field", "entry"),
    [(b"\xff" * 64, b"100 1000"), (b"f" * 64, b"9" * 400 + b" " + b"9" * 15), (b"x", b"1 1")],
)
def test_an_index_with_anything_in_it_does_no_harm(
    settings: TierSettings, client: redis.Redis, field: bytes, entry: bytes
) -> None:
    """Entries that this code never wrote are dropped, and files are kept all the same."""
    now = b" %d" % (time.time() * 1000)
    entry = entry.replace(b" 1000", now)
    client.hset(f"{settings.redis_prefix}:{{files}}", field, entry)
    with contextlib.closing(RedisTier(replace(settings, redis_bytes=SIZE))) as tier:
        assert tier.put(DIGEST, memoryview(DATA))
        assert tier.size(DIGEST) == SIZE
    assert client.hkeys(f"{settings.redis_prefix}:{{files}}") == [DIGEST.encode()]
