"""`outfitter tenant`, `key` and `access`, on a store and on a gateway that asks for keys."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from outfitter.client import KEY_VARIABLE
from tests.outfitter.harness import Running, make_config, make_vector, new_keys, publish, running
from tests.outfitter.test_cli import fails, invoke

PLACES = ("store", "gateway")


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, str]]:
    """A gateway that asks for keys, and the operator's."""
    config = make_config(tmp_path_factory.mktemp("keyed"), auth="keys")
    key = new_keys(config, operator="admin")["operator"]
    with running(config) as gateway:
        yield gateway.wait_ready(), key


@pytest.fixture(params=PLACES)
def place(
    request: pytest.FixtureRequest,
    keyed: tuple[Running, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> list[object]:
    """Options that name either; the key comes from the environment."""
    monkeypatch.delenv("OUTFITTER_DATABASE_URL", raising=False)
    if request.param == "store":
        return ["--store", tmp_path / "store"]
    monkeypatch.setenv(KEY_VARIABLE, keyed[1])
    return ["--url", keyed[0].url]


def test_tenants_keys_and_limits(place: list[object]) -> None:
    """The whole life of a tenant."""
    made = invoke("tenant", "create", "acme", *place)
    assert made.exit_code == 0, made.output
    assert "created the tenant acme, which owns acme/…" in made.stderr
    line = "outfitter key create acme --scope infer --scope publish"
    assert f"make a key for it: {line} {place[0]} {place[1]}\n" in made.stderr
    assert "acme" in invoke("tenant", "list", *place).stdout
    key = invoke("key", "create", "acme", "--scope", "infer", "--scope", "publish", *place)
    text = key.stdout.strip()
    assert text.startswith("ofk_")
    assert "a key of acme for infer, publish; keep it" in key.stderr
    turned = invoke("key", "rotate", "acme", text[:14], "--grace", "1h", *place)
    assert turned.stdout.strip() != text
    assert f"{text[:14]} ends on" in turned.stderr
    assert f"revoked {text[:14]}" in invoke("key", "revoke", "acme", text[:14], *place).stderr
    rows = json.loads(invoke("key", "list", "acme", "--json", *place).stdout)
    assert {row["id"]: row["revoked_at"] is None for row in rows} == {
        text[:14]: False,
        turned.stdout.strip()[:14]: True,
    }
    assert "revoked" in invoke("key", "list", "acme", *place).stdout
    limits = invoke("tenant", "limits", "acme", "--set", "requests_per_minute=5", *place)
    assert json.loads(limits.stdout) == {"requests_per_minute": 5}
    owned = invoke("tenant", "namespace", "acme", "--add", "acme-labs", *place)
    assert "acme/…, acme-labs/…" in owned.stderr
    assert "is disabled" in invoke("tenant", "disable", "acme", *place).stderr
    shown = json.loads(invoke("tenant", "show", "acme", *place).stdout)
    assert (shown["disabled"], shown["namespaces"]) == (True, ["acme", "acme-labs"])
    assert "is enabled" in invoke("tenant", "enable", "acme", *place).stderr
    assert "deleted the tenant acme" in invoke("tenant", "delete", "acme", *place).stderr
    fails(invoke("tenant", "show", "acme", *place), "no tenant 'acme'")


def test_access_is_shown_and_changed(
    place: list[object], keyed: tuple[Running, str], tmp_path: Path
) -> None:
    """Options add to what was said before."""
    file = make_vector(tmp_path / "a", 21)
    if place[0] == "--store":
        config = make_config(tmp_path)
        assert invoke("push", file, "--name", "acme/json", *place).exit_code == 0
        assert config.store == place[1]
    else:
        publish(keyed[0].config, file, "acme/json")
    assert "acme/json is private\n" in invoke("access", "acme/json", *place).stderr
    invoke("access", "acme/json", "--share", "umbra", "--share", "hooli", *place)
    shared = invoke("access", "acme/json", "--unshare", "hooli", "--public", *place)
    assert "acme/json is public, shared with umbra\n" in shared.stderr
    found = json.loads(invoke("access", "acme/json", "--json", "--private", *place).stdout)
    assert (found["visibility"], found["shared_with"]) == ("private", ["umbra"])
    fails(invoke("access", "acme/xml", *place), "no task vector 'acme/xml'")
    fails(invoke("access", "acme/json", "--loadout", *place), "no saved loadout 'acme/json'")


def test_every_command_sends_the_key(
    keyed: tuple[Running, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the environment; `--key` goes before it."""
    gateway, key = keyed
    url = ["--url", gateway.url]
    file = make_vector(tmp_path / "a.safetensors", 22)
    commands = (
        ("push", file, "--name", "sent/json", *url),
        ("list", *url),
        ("show", "sent/json", *url),
        ("tag", "sent/json", "stable", *url),
        ("promote", *url),
        ("store", "stats", *url),
        ("store", "gc", "--dry-run", *url),
        ("pull", f"outfitter://{gateway.url[7:]}/sent/json", "-o", tmp_path / "b.safetensors"),
        ("access", "sent/json", *url),
        ("delete", "sent/json", *url),
    )
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    for command in commands:
        fails(invoke(*command), "401")
    monkeypatch.setenv(KEY_VARIABLE, key)
    for command in commands:
        result = invoke(*command)
        assert result.exit_code == 0, f"{command}: {result.output}"
    fails(invoke("tenant", "list", *url, "--key", f"{key[:-4]}AAAA"), "401")


def test_a_key_goes_to_nobody_else(
    keyed: tuple[Running, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a source that is said to be an Outfitter gets it."""
    gateway, key = keyed
    publish(gateway.config, make_vector(tmp_path / "a", 23), "held/json")
    monkeypatch.setenv(KEY_VARIABLE, key)
    fails(invoke("pull", f"{gateway.url}/held/json", "-o", tmp_path / "b.safetensors"), "401")


def test_what_cannot_be_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is opened."""
    fails(invoke("tenant", "list", "--url", "http://x", "--store", tmp_path), "exclude each other")
    fails(invoke("tenant", "list", "--database-url", "sqlite:////x"), "is for --store")
    fails(invoke("tenant", "namespace", "a", "--store", tmp_path), "--add NAMESPACE")
    fails(invoke("tenant", "limits", "a", "--set", "x", "--store", tmp_path), "use NAME=VALUE")
    fails(invoke("key", "create", "a", "--expires", "soon", "--store", tmp_path), "soon")
    monkeypatch.setenv(KEY_VARIABLE, "ofk_ä")
    fails(invoke("list", "--url", "http://127.0.0.1:1"), KEY_VARIABLE)


def test_a_command_without_a_key_says_where_to_put_one(
    keyed: tuple[Running, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the gateway says to HTTP clients would not help here; a wrong key is told as it is."""
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    url = keyed[0].url
    for command in (("list",), ("usage",), ("loadout", "list"), ("tenant", "list")):
        told = f"{url} asks for a key (401); put one into OUTFITTER_API_KEY"
        fails(invoke(*command, "--url", url), told)
    monkeypatch.setenv(KEY_VARIABLE, "ofk_nobody")
    fails(invoke("list", "--url", url), "answered 401")
