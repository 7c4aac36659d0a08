"""The engine's configuration is refused unless every part of it can be meant; no URL is shown."""

from pathlib import Path

import pytest

from taskvectors.errors import TierUnavailable, UnsupportedEngine, VectorNotFound
from taskvectors.store.settings import (
    ORIGIN_VARIABLE,
    REDIS_VARIABLE,
    TIERS,
    TierSettings,
)
from taskvectors.store.tiered import TieredFiles
from taskvectors.vllm_plugin.config import KEY, PluginConfig

SECRET = "hunter2"
REDIS_URL = f"redis://user:{SECRET}@localhost:1/0"
ORIGIN_URL = f"s3://{SECRET}@bucket/folder"


@pytest.fixture(autouse=True)
def _no_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (REDIS_VARIABLE, ORIGIN_VARIABLE):
        monkeypatch.delenv(variable, raising=False)


def read(tiers: object = None, **fields: object) -> PluginConfig:
    given = {"store": "/store", **fields} | ({} if tiers is None else {"tiers": tiers})
    config = PluginConfig.from_additional_config({KEY: given})
    assert config is not None
    return config


@pytest.mark.parametrize("additional", [None, {}, {"another": {}}, "text", 5])
def test_an_engine_without_our_key_is_left_alone(additional: object) -> None:
    assert PluginConfig.from_additional_config(additional) is None


def test_what_is_not_given_has_a_default() -> None:
    config = read()
    assert config.tiers == TierSettings()
    assert config.store == Path("/store")


def test_what_the_gateway_passes_is_what_the_engine_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line has all but the URLs, which the environment has."""
    settings = TierSettings(
        order=("disk", "redis"),
        memory_bytes=0,
        redis_url=REDIS_URL,
        redis_prefix="p",
        redis_bytes=7,
        redis_ttl_s=8,
        redis_timeout_s=0.5,
        origin_url=ORIGIN_URL,
    )
    assert SECRET not in str(settings.public())
    monkeypatch.setenv(REDIS_VARIABLE, REDIS_URL)
    monkeypatch.setenv(ORIGIN_VARIABLE, ORIGIN_URL)
    given = settings.public()
    assert read({**given, "order": list(settings.order)}).tiers == settings  # as JSON has it


def test_an_empty_variable_is_no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REDIS_VARIABLE, "")
    assert read().tiers.redis_url is None


@pytest.mark.parametrize(
    ("tiers", "message"),
    [
        ({"memory": 5}, "unknown tier setting 'memory'; choose memory_bytes, order, redis_bytes"),
        ({"redis_url": REDIS_URL}, "unknown tier setting 'redis_url'"),
        ({"origin_url": ORIGIN_URL}, "unknown tier setting 'origin_url'"),
        ({"order": ["memory", "tape"]}, "unknown tier 'tape'; choose memory, redis, disk, origin"),
        ({"order": "memory"}, "order must be a list; choose memory"),
        ({"order": 5}, "order must be a list"),
        ({"order": None}, "order must be a list"),
        ({"order": {"memory": 1}}, "order must be a list"),
        ({"order": [["memory"]]}, "order must be a list"),
        ({"order": ["disk", "disk"]}, "order names a tier twice"),
        ({"memory_bytes": -1}, "tiers.memory_bytes must be an integer ≥ 0, not -1"),
        ({"memory_bytes": 1.5}, "tiers.memory_bytes must be an integer ≥ 0, not 1.5"),
        ({"memory_bytes": True}, "tiers.memory_bytes must be an integer ≥ 0, not True"),
        ({"memory_bytes": None}, "tiers.memory_bytes must be an integer ≥ 0, not NoneType"),
        ({"memory_bytes": "1"}, "tiers.memory_bytes must be an integer ≥ 0, not str"),
        ({"redis_bytes": 0}, "tiers.redis_bytes must be an integer ≥ 1, not 0"),
        ({"redis_ttl_s": 0}, "tiers.redis_ttl_s must be an integer ≥ 1, not 0"),
        ({"redis_timeout_s": 0}, "tiers.redis_timeout_s must be a number > 0, not 0"),
        ({"redis_timeout_s": float("nan")}, "tiers.redis_timeout_s must be a number > 0, not nan"),
        ({"redis_timeout_s": float("inf")}, "tiers.redis_timeout_s must be a number > 0, not inf"),
        ({"redis_timeout_s": "2"}, "tiers.redis_timeout_s must be a number > 0, not str"),
        ({"redis_prefix": 5}, "tiers.redis_prefix must be a string"),
        ([], "tiers must be an object"),
        ("memory", "tiers must be an object"),
    ],
)
def test_wrong_tiers_are_refused_by_name(tiers: object, message: str) -> None:
    with pytest.raises(UnsupportedEngine) as caught:
        read(tiers)
    assert message in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["memory_bytes", "redis_bytes", "redis_ttl_s", "redis_timeout_s"])
def test_a_url_in_the_wrong_place_is_not_shown(name: str) -> None:
    with pytest.raises(UnsupportedEngine) as caught:
        read({name: REDIS_URL})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pool": 5}, "unknown key 'pool'"),
        ({"pool_bytes": 0}, "pool_bytes must be an integer ≥ 1, not 0"),
        ({"max_vectors": 2.0}, "max_vectors must be an integer ≥ 1, not 2.0"),
        ({"max_waiting": -1}, "max_waiting must be an integer ≥ 0, not -1"),
        ({"admission_timeout_s": float("inf")}, "admission_timeout_s must be a number > 0"),
        ({"compose_timeout_s": 0}, "compose_timeout_s must be a number > 0, not 0"),
        ({"store": 5}, "needs 'store', a directory"),
    ],
)
def test_wrong_fields_are_refused_by_name(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UnsupportedEngine) as caught:
        read(**fields)
    assert message in str(caught.value)


@pytest.mark.parametrize("fields", [[], "store", 5, True])
def test_a_key_of_ours_that_is_no_object_is_refused(fields: object) -> None:
    with pytest.raises(UnsupportedEngine, match="must be an object"):
        PluginConfig.from_additional_config({KEY: fields})


def test_no_url_is_in_a_repr_or_an_error_of_a_tier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even when nobody answers there, or when the URL cannot be one."""
    monkeypatch.setenv(REDIS_VARIABLE, REDIS_URL)
    config = read({"order": ["redis", "disk"]}, store=str(tmp_path))
    assert SECRET not in repr(config)
    files = TieredFiles(config.store, config.tiers, with_memory=False)
    with pytest.raises((TierUnavailable, VectorNotFound)) as caught:
        files.load("a" * 64)
    files.close()
    texts = [repr(files), str(files.stats()), str(caught.value), repr(caught.value), caplog.text]
    for url in (
        f"redis://user:{SECRET}@host:port/0",
        f"http://{SECRET}@host",
        f"redis://{SECRET}#",
    ):
        monkeypatch.setenv(REDIS_VARIABLE, url)
        try:
            TieredFiles(config.store, read().tiers, with_memory=False).close()
        except UnsupportedEngine as error:
            texts.append(str(error))
    assert len(texts) > 5, "one of the URLs is refused"
    assert not [text for text in texts if SECRET in text]


def test_every_tier_is_in_the_order_by_default() -> None:
    assert read().tiers.order == TIERS
