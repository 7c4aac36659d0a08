"""What `outfitter serve` accepts, and how it starts the engine."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from outfitter.config import (
    GatewayConfig,
    InvalidConfig,
    model_name,
    parse_size,
    read_limits,
)
from outfitter.control.keep import Keep
from outfitter.control.limits import GENEROUS, LimitsBook
from outfitter.engine.command import engine_command, engine_environment
from taskvectors.store.settings import TierSettings


def config(**settings: object) -> GatewayConfig:
    return GatewayConfig(**{"model": Path("/m"), "name": "n", "store": Path("/s"), **settings})


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("512MiB", 512 * 2**20),
        ("2GiB", 2**31),
        ("2gib", 2**31),
        ("1.5KiB", 1536),
        ("2GB", 2 * 10**9),
        ("3 TiB", 3 * 2**40),
    ],
)
def test_sizes_have_units(text: str, size: int) -> None:
    """Bytes, decimal and binary units."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "2XiB", "-1", "1e9", "GiB"])
def test_a_size_that_is_none_is_rejected(text: str) -> None:
    """The error names the value."""
    with pytest.raises(InvalidConfig, match="unsupported size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, "--dtype 'int8'; choose auto, float32"),
        ({"slots": 0}, "--slots 0"),
        ({"port": 70000}, "--port 70000"),
        ({"pool_bytes": 0}, "--pool-bytes 0"),
        ({"composed_bytes": 0}, "--composed-bytes 0"),
        ({"compose_memory_bytes": -1}, "--compose-memory -1"),
        ({"placement": "on"}, "--placement 'on'; choose auto, off"),
        ({"max_model_len": -1}, "--max-model-len -1"),
        ({"drain_seconds": -1}, "--drain-seconds -1"),
        ({"engine_args": ("--port=1",)}, "'--port'; use outfitter's own --port"),
        ({"engine_args": ("--enable_lora",)}, "'--enable-lora'; it is set by outfitter"),
    ],
)
def test_a_bad_setting_is_named_with_its_value(settings: dict, message: str) -> None:
    """A setting that cannot work is refused at the start."""
    with pytest.raises(InvalidConfig) as caught:
        config(**settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("host", "is_loopback", "url"),
    [
        ("127.0.0.1", True, "http://127.0.0.1:8000"),
        ("localhost", True, "http://localhost:8000"),
        ("::1", True, "http://[::1]:8000"),
        ("0.0.0.0", False, "http://127.0.0.1:8000"),
        ("gpu.example", False, "http://gpu.example:8000"),
    ],
)
def test_the_address_is_known(host: str, is_loopback: bool, url: str) -> None:
    """Loopback is told from the open network; the URL works on this machine."""
    assert config(host=host).is_loopback is is_loopback
    assert config(host=host).url == url


@pytest.mark.parametrize(
    ("host", "auth", "asks"),
    [
        ("127.0.0.1", None, False),
        ("::1", "open", False),
        ("localhost", "keys", True),
        ("0.0.0.0", None, True),
        ("gpu.example", "keys", True),
    ],
)
def test_keys_are_asked_for_where_others_come(host: str, auth: str | None, asks: bool) -> None:
    """On a loopback address only when that is said."""
    assert config(host=host, auth=auth).asks_for_keys is asks


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "gpu.example", "10.0.0.1"])
def test_an_open_gateway_listens_on_loopback_only(host: str) -> None:
    """And the refusal says what to do."""
    with pytest.raises(InvalidConfig, match=r"--auth 'open'; others can reach .* --auth keys"):
        config(host=host, auth="open")
    with pytest.raises(InvalidConfig, match="unsupported --auth 'none'; choose open, keys"):
        config(host=host, auth="none")


def test_the_name_is_the_folders_last_part(tmp_path: Path) -> None:
    """A given name wins; a repo id is its own name."""
    assert model_name(str(tmp_path), None) == tmp_path.name
    assert model_name(str(tmp_path), "mine") == "mine"
    assert model_name("org/repo", None) == "org/repo"


def test_the_engine_command_line() -> None:
    """vLLM listens on the socket, with the plugin's settings and the user's own flags last."""
    sizes = {"pool_bytes": 7, "composed_bytes": 8, "compose_memory_bytes": 9}
    made = config(slots=3, **sizes, max_model_len=64, engine_args=("--seed", "1"))
    command = engine_command(made, Path("/d/engine.sock"), "f" * 64)
    text = " ".join(command)
    assert "-m vllm.entrypoints.openai.api_server --model /m --served-model-name n" in text
    assert "--uds /d/engine.sock --dtype auto" in text
    assert "--enable-lora --max-loras 3 --max-lora-rank 1" in text
    assert command[-4:] == ["--max-model-len", "64", "--seed", "1"]
    settings = json.loads(command[command.index("--additional-config") + 1])["task_vectors"]
    assert settings == {
        "store": "/s",
        **sizes,
        "placement": "off",
        "compiled": False,
        "base_fingerprint": "f" * 64,
        "max_vectors": 64,
        "admission_timeout_s": 30.0,
        "tiers": {**made.tiers.public(), "order": ["memory", "redis", "disk", "origin"]},
    }


def test_the_urls_of_the_tiers_are_in_the_environment_and_nowhere_else() -> None:
    """A command line can be read by everybody on the machine."""
    tiers = TierSettings(redis_url="redis://:secret@h", redis_prefix="p", redis_bytes=5)
    made = config(tiers=tiers, database_url="postgresql://u:secret@h/d")
    assert "secret" not in " ".join(engine_command(made, Path("/d/engine.sock"), "f" * 64))
    ours = [f"OUTFITTER_{name}_URL" for name in ("DATABASE", "REDIS", "ORIGIN")]
    inherited = dict.fromkeys(("TASKVECTORS_ORIGIN_URL", *ours), "secret")
    environment = engine_environment(inherited, tiers)
    assert environment["TASKVECTORS_REDIS_URL"] == "redis://:secret@h"
    assert not {"TASKVECTORS_ORIGIN_URL", *ours} & environment.keys()
    assert TierSettings.parse(tiers.public(), environment) == tiers


def test_the_engine_environment() -> None:
    """Ours wins, defaults give way, and what would open or break doors of vLLM is gone."""
    dangerous = {
        *("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_API_KEY"),
        *("VLLM_ENABLE_RESPONSES_API_STORE", "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION"),
    }
    given = {
        "PATH": "/bin",
        "VLLM_PLUGINS": "other",
        "VLLM_CPU_KVCACHE_SPACE": "4",
        **dict.fromkeys(dangerous, "1"),
    }
    made = engine_environment(given, TierSettings())
    assert made["PATH"] == "/bin"
    assert made["VLLM_PLUGINS"] == "taskvectors"
    assert made["VLLM_CPU_KVCACHE_SPACE"] == "4"
    assert engine_environment({}, TierSettings())["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert not dangerous & made.keys()


def test_limits_come_from_a_file(tmp_path: Path) -> None:
    """YAML, and so JSON, too, over what limits everybody."""
    assert read_limits(None) == LimitsBook()
    for text in (
        "default:\n  queue: 3\ntenants:\n  acme:\n    pool_share: 0.5\n",
        '{"default": {"queue": 3}, "tenants": {"acme": {"pool_share": 0.5}}}',
    ):
        path = tmp_path / "limits"
        path.write_text(text)
        book = read_limits(path)
        assert book.of("other") == replace(GENEROUS, queue=3)
        assert book.of("acme") == replace(GENEROUS, queue=3, pool_share=0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("default: {rpm: 3}", "unknown limit 'rpm'; choose requests_per_minute"),
        ("tenants: {acme: {queue: -1}}", "tenants.acme: queue must be a whole number from 0"),
        ("default: [", "while parsing"),
        ("- 1", "the limits must be an object, not a list"),
        ("\x00", "special characters are not allowed"),
    ],
)
def test_a_wrong_file_of_limits_is_named(tmp_path: Path, text: str, message: str) -> None:
    """With what is wrong in it."""
    path = tmp_path / "limits.yaml"
    path.write_text(text)
    with pytest.raises(InvalidConfig, match=r"unsupported --limits .*limits\.yaml") as caught:
        read_limits(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"max_running": 0}, "--max-running"),
        ({"max_waiting": -1}, "--max-waiting"),
        ({"keep": Keep(uses=0)}, "--keep-uses"),
        ({"keep": Keep(changes=-1.0)}, "--keep-audit"),
        ({"max_wait_s": 0.0}, "--max-wait"),
    ],
)
def test_bounds_of_the_queue_are_checked(settings: dict, option: str) -> None:
    """By their options' names."""
    with pytest.raises(InvalidConfig, match=f"unsupported {option} "):
        GatewayConfig(model=Path("/m"), name="n", store=Path("/s"), **settings)
