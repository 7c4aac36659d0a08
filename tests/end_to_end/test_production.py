"""The story of docs/production.md: two tenants of one real engine, whose keys do not cross."""

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.end_to_end.conftest import CLIENT_TIMEOUT_S, OUTFITTER, Gateway, outfitter, serving
from tests.end_to_end.synthetic import Synthetic
from tests.outfitter.harness import wait_for

ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
    "max_tokens": 6,
}
NAMES = {"acme": ("acme/house-style", "acme/support-bot"), "umbra": ("umbra/voice", "umbra/parrot")}


@dataclass(frozen=True)
class Shop:
    """A gateway that asks for keys. keys: of the tenants, `operator` (admin) and `prometheus`."""

    gateway: Gateway
    keys: dict[str, str]

    def http(self, who: str) -> httpx.Client:
        """A client with a key."""
        headers = {"authorization": f"Bearer {self.keys[who]}"}
        return httpx.Client(base_url=self.gateway.url, timeout=CLIENT_TIMEOUT_S, headers=headers)

    def sdk(self, who: str) -> openai.OpenAI:
        """OpenAI's own client with a key."""
        return openai.OpenAI(
            base_url=f"{self.gateway.url}/v1",
            api_key=self.keys[who],
            max_retries=0,
            timeout=CLIENT_TIMEOUT_S,
        )

    def usage(self, who: str) -> dict[str, int]:
        """What a tenant used today of its saved model, as far as it is written down."""
        with self.http(who) as client:
            answer = client.get("/v1/usage", params={"group_by": "tenant,model"}).json()
        assert {row["tenant"] for row in answer["data"]} <= {who}
        [row] = [row for row in answer["data"] if row["model"] == NAMES[who][1]] or [{}]
        return {
            name: row.get(name, 0) for name in ("requests", "prompt_tokens", "completion_tokens")
        }

    def is_written(self) -> bool:
        """Whether all usage is written down that there is."""
        with self.http("prometheus") as client:
            return "\noutfitter_usage_pending 0.0\n" in client.get("/metrics").text


def run(key: str, *arguments: str) -> str:
    """The command line with a key in its environment; its output."""
    done = subprocess.run(
        [OUTFITTER, *arguments],
        env={**os.environ, "OUTFITTER_API_KEY": key},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def shop(
    base_dir: Path, vectors: dict[str, Synthetic], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shop]:
    """From an empty folder to two tenants, each with a vector and a saved model."""
    folder = tmp_path_factory.mktemp("production")
    database = {"OUTFITTER_DATABASE_URL": f"sqlite:///{folder / 'catalog.sqlite3'}"}
    place = ("--store", str(folder / "base-store"), "--database-url", *database.values())
    outfitter("tenant", "create", "operator", *place)
    keys = {"operator": outfitter("key", "create", "operator", "--scope", "admin", *place).strip()}
    limits = ("--slots", "4", "--pool-bytes", "32MiB", "--max-model-len", "512")
    with serving(base_dir, "base", folder, "--auth", "keys", *limits, **database) as gateway:
        admin, url = keys["operator"], ("--url", gateway.url)
        scraper = ("operator", "--name", "prometheus", "--scope", "operate")
        keys["prometheus"] = run(admin, "key", "create", *scraper, *url)
        for (tenant, (vector, model)), file in zip(NAMES.items(), vectors.values(), strict=False):
            run(admin, "tenant", "create", tenant, *url)
            scopes = ("--scope", "infer", "--scope", "publish")
            keys[tenant] = run(admin, "key", "create", tenant, *scopes, *url)
            run(keys[tenant], "push", str(file.path), "--name", vector, *url)
            run(keys[tenant], "loadout", "save", model, f"{vector}=1", *url)
        yield Shop(gateway, keys)


def test_each_is_answered_by_its_own_model(shop: Shop) -> None:
    """With nothing but the key and the model's name, by a client that nobody here wrote."""
    for who, (vector, model) in NAMES.items():
        with shop.sdk(who) as sdk:
            assert [one.id for one in sdk.models.list()] == ["base", model]
            answer = sdk.chat.completions.create(model=model, **ASK)
        assert answer.model == model
        used = answer.model_extra["task_vectors"]
        assert used["saved"] == {"name": model, "version": 1}
        assert [one["name"] for one in used["vectors"]] == [vector]


def test_the_keys_do_not_cross(shop: Shop, vectors: dict[str, Synthetic]) -> None:
    """The other's model and vector do not exist, by name or by digest, to use or to save."""
    for who, other in (("acme", "umbra"), ("umbra", "acme")):
        vector, model = NAMES[other]
        with shop.http(other) as owner:
            digest = owner.get(f"/v1/task_vectors/{vector}").json()["digest"]
        with shop.sdk(who) as sdk:
            for name in (model, f"{model}@1"):
                with pytest.raises(openai.NotFoundError, match="does not exist"):
                    sdk.chat.completions.create(model=name, **ASK)
            for reference in (vector, f"{vector}@1", digest):
                extra = {"task_vectors": {reference: 1.0}}
                with pytest.raises(openai.NotFoundError, match="no task vector"):
                    sdk.chat.completions.create(model="base", extra_body=extra, **ASK)
        with shop.http(who) as client:
            assert client.get(f"/v1/loadouts/{model}").status_code == 404
            theft = {"name": f"{who}/thief", "task_vectors": {vector: 1.0}}
            assert client.post("/v1/loadouts", json=theft).status_code == 404
            assert client.get("/metrics").status_code == 403


def test_what_is_used_is_what_the_answers_say(shop: Shop) -> None:
    """Whole answers, streams that ask for their usage, and streams that do not: token by token."""
    model = NAMES["acme"][1]
    wait_for(shop.is_written)
    before = shop.usage("acme")
    with shop.sdk("acme") as sdk:
        whole = sdk.chat.completions.create(model=model, **ASK).usage
        asked = sdk.chat.completions.create(
            model=model, stream=True, stream_options={"include_usage": True}, **ASK
        )
        told = [chunk.usage for chunk in asked if chunk.usage is not None]
        silent = list(sdk.chat.completions.create(model=model, stream=True, **ASK))
    assert whole is not None
    assert [(one.prompt_tokens, one.completion_tokens) for one in told] == [
        (whole.prompt_tokens, whole.completion_tokens)
    ]
    assert all(chunk.usage is None and chunk.choices for chunk in silent)
    expected = {
        "requests": before["requests"] + 3,
        "prompt_tokens": before["prompt_tokens"] + 3 * whole.prompt_tokens,
        "completion_tokens": before["completion_tokens"] + 3 * whole.completion_tokens,
    }
    wait_for(lambda: shop.usage("acme") == expected)


def test_who_used_what_is_in_the_trail_and_in_the_metrics(shop: Shop) -> None:
    """The trail for the operator's key, the metrics for that of Prometheus."""
    with shop.sdk("umbra") as sdk:
        raw = sdk.chat.completions.with_raw_response.create(model=NAMES["umbra"][1], **ASK)
    digest = raw.headers["x-outfitter-loadout"]

    def users() -> set[str]:
        with shop.http("operator") as client:
            answer = client.get("/v1/audit/loadouts", params={"loadout": digest}).json()
        return {use["tenant"] for use in answer["data"]}

    wait_for(lambda: users() == {"umbra"})
    with shop.http("prometheus") as client:
        text = client.get("/metrics").text
        assert client.get("/v1/audit/loadouts").status_code == 403
    for who, (_, model) in NAMES.items():
        assert f'outfitter_completion_tokens_total{{model="{model}",tenant="{who}"}}' in text


def test_a_quota_trips_for_one_and_not_for_the_other(shop: Shop) -> None:
    """With OpenAI's headers; the other has no limits and no such headers."""
    limits = {"requests_per_minute": 2, "tokens_per_day": 1_000_000}
    with shop.http("operator") as admin:
        changed = admin.patch("/v1/tenants/acme/limits", json=limits)
        assert changed.status_code == 200, changed.text
    refused = _until_refused(lambda: _raw(shop, "acme"))
    assert refused.status_code == 429
    told = refused.headers
    assert told["x-ratelimit-limit-requests"] == "2"
    assert told["x-ratelimit-remaining-requests"] == "0"
    assert told["x-ratelimit-limit-tokens"] == "1000000"
    assert 0 <= int(told["x-ratelimit-remaining-tokens"]) <= 1_000_000
    assert told["x-ratelimit-reset-requests"].endswith("s")
    assert 1 <= int(told["retry-after"]) <= 60
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    other = _raw(shop, "umbra")
    assert other.status_code == 200
    assert not [name for name in other.headers if name.startswith("x-ratelimit")]


def _raw(shop: Shop, who: str) -> httpx.Response:
    with shop.http(who) as client:
        return client.post("/v1/chat/completions", json={"model": NAMES[who][1], **ASK})


def _until_refused(ask: Callable[[], httpx.Response]) -> httpx.Response:
    """At most two windows of two requests pass before a third meets a full one."""
    for _ in range(8):
        answer = ask()
        if answer.status_code != 200:
            break
        assert int(answer.headers["x-ratelimit-remaining-requests"]) in (0, 1)
    return answer
