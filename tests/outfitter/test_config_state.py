"""What `serve` is told of the store's state: each mistake is named, and no secret is shown."""

from pathlib import Path

import pytest

from outfitter.commands.options import LocalStore
from outfitter.config import GatewayConfig, InvalidConfig, parse_seconds, parse_tiers
from outfitter.urls import shown
from taskvectors.store.settings import TIERS, TierSettings


def config(**settings: object) -> GatewayConfig:
    return GatewayConfig(model=Path("/m"), name="n", store=Path("/s"), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"database_url": "mysql://u:secret@h/d"}, "--database-url 'mysql://h/d'; use sqlite"),
        ({"database_url": "catalog.db"}, "--database-url 'catalog.db'; use sqlite"),
        ({"database_url": "sqlite://"}, "names no database"),
        ({"database_url": "postgresql://u:secret@h:abc/d"}, "--database-url 'postgresql://h:abc/d"),
        ({"pins": ("a b",)}, "--pin 'a b'; invalid reference"),
        ({"pins": ("a", "a")}, "--pin 'a'; it is given twice"),
        ({"pull_from": ("example.com",)}, "--allow-pull 'example.com'; use the start"),
        ({"pull_from": ("https://",)}, "--allow-pull 'https://'; use the start"),
        ({"pull_from": ("https://u:secret@h/",)}, "--allow-pull 'https://h/'; use the start"),
        ({"pull_from": ("s3://b/../c",)}, "such as hf://owner/"),
        ({"quarantine_bytes": -1}, "--quarantine-bytes"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict, message: str) -> None:
    """Option, value and advice; never the password."""
    with pytest.raises(InvalidConfig, match="unsupported --") as caught:
        config(**settings)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("tiers", "message"),
    [
        ({"redis_url": "http://:secret@h"}, "--redis-url 'http://h'; use redis://"),
        ({"redis_url": "redis://:secret@h:99999"}, "Port out of range"),
        ({"redis_url": "unix://"}, "names no socket"),
        ({"origin_url": "nope://secret@b"}, "--origin 'nope://b'; use s3://"),
        ({"origin_url": "memory://b"}, "use s3://"),
        ({"origin_url": "relative/folder"}, "--origin 'relative/folder'; use s3://"),
        ({"origin_url": "file://relative"}, "use s3://"),
        ({"origin_url": "gs://bucket"}, "gcsfs"),
        ({"redis_prefix": ""}, "--redis-prefix ''"),
        ({"redis_prefix": "a{b}"}, "--redis-prefix 'a{b}'"),
        ({"memory_bytes": -1}, "--host-bytes -1"),
        ({"redis_bytes": 0}, "--redis-bytes 0"),
        ({"redis_ttl_s": 0}, "--redis-ttl 0"),
        ({"order": ("memory", "tape", "disk")}, "there is no tier 'tape'; choose from memory,"),
        ({"order": ("disk", "memory", "disk")}, "each once"),
        ({"order": ("memory",)}, "disk must be among them"),
        ({"order": ("redis", "disk")}, "the tier 'redis' needs --redis-url"),
        ({"order": ("disk", "origin")}, "the tier 'origin' needs --origin"),
    ],
)
def test_a_wrong_tier_is_named(tiers: dict, message: str) -> None:
    """Also for commands on a local store."""
    for make in (lambda: config(tiers=TierSettings(**tiers)), lambda: local(tiers)):
        with pytest.raises(InvalidConfig, match="unsupported --") as caught:
            make()
        assert message in str(caught.value)
        assert "secret" not in str(caught.value)


def local(tiers: dict) -> LocalStore:
    return LocalStore(Path("/s"), None, TierSettings(**tiers))


@pytest.mark.parametrize(
    "settings",
    [
        {"database_url": "postgresql+psycopg://u:p@h:5432/d?host=/tmp/socket"},
        {"database_url": "postgres://u:p@h:5432/d"},
        {"database_url": "sqlite:////tmp/c.sqlite3"},
        {"tiers": TierSettings(redis_url="rediss://u:p@h:6379/1")},
        {"tiers": TierSettings(redis_url="unix:///tmp/redis.sock?db=1")},
        {"tiers": TierSettings(origin_url="/mnt/vectors", order=("disk", "origin"))},
        {"tiers": TierSettings(origin_url="s3://bucket/folder")},
        {"tiers": TierSettings(order=("disk",), memory_bytes=0)},
        {"pins": ("json", "acme/legal@3", "acme/legal@stable")},
        {
            "pull_from": (
                "hf://owner/",
                "https://huggingface.co/",
                "s3://bucket/",
                "file:///srv/vectors/",
            )
        },
        {"quarantine_bytes": 0},
    ],
)
def test_right_settings_are_taken(settings: dict) -> None:
    """What the advice names works."""
    config(**settings)


def test_the_environment_names_the_state_of_a_local_store() -> None:
    """The same variables as for `serve`; an empty one is none."""
    found = LocalStore.of(
        Path("/s"),
        {
            "OUTFITTER_DATABASE_URL": "postgresql://h/d",
            "OUTFITTER_REDIS_URL": "redis://h",
            "OUTFITTER_REDIS_PREFIX": "team",
            "OUTFITTER_ORIGIN_URL": "",
        },
    )
    tiers = TierSettings(redis_url="redis://h", redis_prefix="team")
    assert found == LocalStore(Path("/s"), "postgresql://h/d", tiers)
    assert LocalStore.of(Path("/s"), {}) == LocalStore(Path("/s"))


@pytest.mark.parametrize(
    ("url", "printed"),
    [
        ("redis://user:se@cret@host:6379/0", "redis://host:6379/0"),
        ("redis://:se/cret@host", "redis://host"),
        ("redis://:se?cret@host", "redis://…"),
        ("postgresql://host/db?password=secret", "postgresql://host/db"),
        ("postgresql://host/db?password=sec@ret", "postgresql://…"),
        ("host=h password=secret", "…"),
        ("/mnt/vectors", "/mnt/vectors"),
    ],
)
def test_a_url_is_shown_without_secrets(url: str, printed: str) -> None:
    """Wherever somebody put them."""
    assert shown(url) == printed


def test_tiers_and_times_are_parsed() -> None:
    """Lists with commas, times with units."""
    assert parse_tiers("memory, redis,disk,origin") == TIERS
    assert [parse_seconds(text) for text in ("90", "1.5h", "7d", "15 m")] == [90, 5400, 604800, 900]
    for wrong in ("", "-1", "1 week", "h"):
        with pytest.raises(InvalidConfig, match="unsupported time"):
            parse_seconds(wrong)
