"""A gateway holds tenants to their limits, says so as OpenAI does, and is fair between them."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Request

from outfitter import deps
from outfitter.control.limits import Limits, LimitsBook
from outfitter.control.outcome import Outcome
from outfitter.control.principal import OPEN, Principal, Scope
from outfitter.quotas import counters
from outfitter.quotas.quotas import MAX_LABELS, OTHER, Quotas
from taskvectors.store.settings import TierSettings
from tests import services
from tests.outfitter import harness
from tests.outfitter.harness import Running, make_config, make_vector, push, running, wait_for

NOW = 1_800_000_000.0


class Served:
    """A gateway whose clock stands still, and whose tenants are who they say they are."""

    def __init__(self, gateway: Running, app: FastAPI) -> None:
        self.url, self.client = gateway.url, gateway.client
        self.quotas: Quotas = app.state.gateway.quotas
        self.announced = gateway.announced
        self._loop = app.state.loop

    def set_clock(self, now: float) -> None:
        self.quotas._clock = lambda: now

    def ask(
        self, prompt: str | list[str] = "hi", tenant: str = "open", **fields: object
    ) -> httpx.Response:
        body = {"model": "base-model", "prompt": prompt, **fields}
        return self.client.post("/v1/completions", json=body, headers={"x-tenant": tenant})

    def charge(self, tokens: int, tenant: str = "open") -> None:
        """As if a request had cost so many tokens."""
        principal = Principal(tenant, None, frozenset())
        outcome = Outcome("r", principal, "/v1/completions", "m", None, "base", False, 0.0)
        outcome.prompt_tokens, outcome.completion_tokens = tokens - 1, 1

        async def observe() -> None:
            self.quotas.observe(outcome)
            await asyncio.gather(*self.quotas._charges)

        asyncio.run_coroutine_threadsafe(observe(), self._loop).result(20)

    def stats(self) -> dict:
        return self.client.get("/v1/store/stats").json()["quotas"]


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts gateways that end with the test."""
    apps: list[FastAPI] = []
    create = harness.create_app

    def create_app(*args: object) -> FastAPI:
        app = create(*args)
        app.dependency_overrides[deps._principal] = _said
        apps.append(app)
        return app

    async def _said(request: Request) -> Principal:
        request.app.state.loop = asyncio.get_running_loop()
        tenant = request.headers.get("x-tenant")
        return OPEN if tenant is None else Principal(tenant, "key", frozenset(Scope))

    monkeypatch.setattr(harness, "create_app", create_app)
    with contextlib.ExitStack() as stack:

        def start(limits: dict | None = None, name: str = "one", **settings: object) -> Served:
            book = LimitsBook(Limits.parse(limits or {}))
            config = make_config(tmp_path / name, limits=book, **settings)
            gateway = stack.enter_context(running(config)).wait_ready()
            number = len(apps) - 1
            assert httpx.post(f"{gateway.url}/v1/completions", content=b"{").status_code == 400
            served = Served(gateway, apps[number])
            served.set_clock(NOW)
            return served

        yield start


@contextlib.contextmanager
def background() -> Iterator[Callable[..., "Future[httpx.Response]"]]:
    with ThreadPoolExecutor(32) as pool:
        yield pool.submit


@contextlib.contextmanager
def leaving(served: Served, **fields: object) -> Iterator[None]:
    """A client that asks, and leaves at the end of the block."""
    with socket.create_connection(("127.0.0.1", httpx.URL(served.url).port)) as connection:
        body = json.dumps({"model": "base-model", **fields}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        yield


def ratelimit(response: httpx.Response) -> dict[str, str]:
    return {k[12:]: v for k, v in response.headers.items() if k.startswith("x-ratelimit-")}


def test_without_limits_no_header_says_anything(serve: Serve) -> None:
    """And what was let in is counted."""
    served = serve()
    assert ratelimit(served.ask()) == {}
    assert served.stats()["tenants"]["open"]["admitted"] == 1


def test_requests_of_a_minute_trip_with_openais_headers(serve: Serve) -> None:
    """What is left counts down, the refusal says when, and the next minute begins anew."""
    served = serve({"requests_per_minute": 2})
    answers = [served.ask() for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    reset = answers[0].headers["x-ratelimit-reset-requests"]
    for answer, remaining in zip(answers, "100", strict=True):
        assert ratelimit(answer) == {
            "limit-requests": "2",
            "remaining-requests": remaining,
            "reset-requests": reset,
        }
    seconds = float(reset.removesuffix("s"))
    assert answers[2].headers["retry-after"] == f"{seconds:.0f}"
    assert answers[2].json() == {
        "error": {
            "message": "Rate limit reached for tenant 'open' on requests_per_minute: limit 2,"
            f" used 2. Please try again in {reset}.",
            "type": "requests",
            "param": None,
            "code": "rate_limit_exceeded",
        }
    }
    served.set_clock(NOW + seconds - 7)
    assert served.ask().headers["retry-after"] == "7"
    served.set_clock(NOW + seconds)
    fresh = served.ask()
    assert (fresh.status_code, ratelimit(fresh)["remaining-requests"]) == (200, "1")
    assert ratelimit(fresh)["reset-requests"] == "1m0s"
    assert served.stats()["tenants"]["open"]["refused"] == {"rate_limit_exceeded": 2}


def test_tokens_are_charged_afterwards_and_streams_are_never_cut(serve: Serve) -> None:
    """Who was let in is answered to the end; who comes when all are used up waits for the reset."""
    served = serve({"tokens_per_minute": 100, "tokens_per_day": 150})
    body = {"model": "base-model", "prompt": "slowly", "stream": True}
    with served.client.stream("POST", "/v1/completions", json=body) as stream:
        assert ratelimit(stream)["remaining-tokens"] == "100"
        assert ratelimit(stream)["limit-tokens"] == "100"
        served.charge(120)
        refused = served.ask()
        text = stream.read().decode()
    assert text.count("data: {") == 3
    assert text.endswith("data: [DONE]\n\n")
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == "tokens"
    assert "tokens_per_minute: limit 100, used 122" in refused.json()["error"]["message"]
    assert ratelimit(refused)["remaining-tokens"] == "0"
    served.set_clock(NOW + 60)
    answer = served.ask()
    assert answer.status_code == 200
    assert ratelimit(answer)["limit-tokens"] == "150"
    assert ratelimit(answer)["remaining-tokens"] == "26"  # the stream was charged 4
    served.charge(40)
    served.set_clock(NOW + 120)
    assert "tokens_per_day: limit 150, used 169" in served.ask().json()["error"]["message"]
    served.set_clock(NOW + 86_400)
    assert served.ask().status_code == 200


def test_a_prompt_is_charged_when_it_is_sent_and_put_right_at_the_end(serve: Serve) -> None:
    """Whoever leaves early has paid for it; who is answered pays what the engine counted."""
    served = serve({"tokens_per_minute": 10_000})

    def left() -> int:
        return int(ratelimit(served.ask(model="base-model"))["remaining-tokens"])

    assert left() == 10_000
    assert left() == 9995
    with leaving(served, prompt=["x" * 4000, "hang"]):
        wait_for(lambda: served.stats()["running"] == 1)
        assert left() == 9990 - 1001
    wait_for(lambda: served.stats()["running"] == 0)
    assert served.ask(["x" * 400, "vllm error"]).status_code == 400
    assert left() == 9985 - 1001
    assert served.stats()["tenants"]["open"]["tokens"] == 4 * 5 + 1001


def test_a_prompt_that_was_charged_in_another_minute_is_not_taken_back_in_this_one(
    serve: Serve,
) -> None:
    """What is more than the estimate counts when the answer has ended."""
    served = serve({"tokens_per_minute": 1000})
    with background() as start:
        job = start(served.ask, "sleep 1" + " " * 393)
        wait_for(lambda: served.stats()["running"] == 1)
        served.set_clock(NOW + 60)
        assert job.result().status_code == 200
    assert ratelimit(served.ask())["remaining-tokens"] == "1000"


def test_an_error_of_the_engine_has_the_headers_too(serve: Serve) -> None:
    """A request that fails was one."""
    served = serve({"requests_per_minute": 5})
    answer = served.ask("vllm error")
    assert answer.status_code == 400
    assert ratelimit(answer)["remaining-requests"] == "4"


def test_two_gateways_on_one_valkey_share_one_count(
    serve: Serve, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests and tokens; each tenant its own."""
    monkeypatch.setattr(counters, "TIMEOUT_S", 5.0)
    tiers = TierSettings(redis_url=redis_url, redis_prefix=redis_prefix)
    limits = {"requests_per_minute": 4, "tokens_per_minute": 100}
    pair = [serve(limits, name, tiers=tiers) for name in ("one", "two")]
    answers = [pair[turn % 2].ask() for turn in range(5)]
    assert [answer.status_code for answer in answers] == [200] * 4 + [429]
    assert [ratelimit(answer)["remaining-requests"] for answer in answers] == list("32100")
    pair[0].charge(60, "acme")
    assert ratelimit(pair[1].ask(tenant="acme"))["remaining-tokens"] == "40"
    assert ratelimit(pair[1].ask(tenant="other"))["remaining-tokens"] == "100"
    assert pair[0].stats()["counters"]["is_shared"]


def test_a_gateway_outlives_its_valkey(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts for itself until Valkey is back."""
    monkeypatch.setattr(counters, "TIMEOUT_S", 2.0)
    monkeypatch.setattr(counters, "AWAY_S", 0.2)
    with services.valkey(tmp_path) as server:
        tiers = TierSettings(redis_url=server.url, redis_prefix="p")
        served = serve({"requests_per_minute": 6}, tiers=tiers)
        assert served.ask().status_code == 200
        server.kill()
        assert [served.ask().status_code for _ in range(4)] == [200] * 4
        assert not served.stats()["counters"]["is_up"]
        server.start()
        wait_for(lambda: served.ask() is not None and served.stats()["counters"]["is_up"])
        assert served.ask().status_code == 429


def test_a_tenants_own_limit_makes_it_wait_and_then_refuses(serve: Serve) -> None:
    """Others run meanwhile; the refusal says what runs and waits."""
    served = serve({"concurrent_requests": 1, "queue": 1})
    with background() as start:
        first = start(served.ask, "sleep 1.5", "acme")
        wait_for(lambda: served.stats()["running"] == 1)
        second = start(served.ask, "hi", "acme")
        wait_for(lambda: served.stats()["waiting"] == 1)
        third = served.ask("hi", "acme")
        assert served.ask("hi", "other").status_code == 200
        assert (first.result().status_code, second.result().status_code) == (200, 200)
    assert third.status_code == 429
    assert third.json()["error"]["code"] == "tenant_queue_full"
    assert "concurrent_requests is 1) and 1 wait (queue is 1)" in third.json()["error"]["message"]
    assert int(third.headers["retry-after"]) >= 1
    assert served.stats()["running"] == 0


def test_a_full_server_is_busy_and_does_not_collapse(serve: Serve) -> None:
    """503 beyond max_waiting, and after max_wait_s."""
    served = serve(max_running=1, max_waiting=1, max_wait_s=0.4)
    with background() as start:
        first = start(served.ask, "sleep 2")
        wait_for(lambda: served.stats()["running"] == 1)
        second = start(served.ask)
        wait_for(lambda: served.stats()["waiting"] == 1)
        third = served.ask()
        answers = [first.result(), second.result(), third]
    assert [answer.status_code for answer in answers] == [200, 503, 503]
    assert [answer.json()["error"]["code"] for answer in answers[1:]] == ["server_busy"] * 2
    assert "no turn within 0.4 s" in answers[1].json()["error"]["message"]
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers[1:])
    assert served.ask().status_code == 200


def test_a_flood_does_not_hold_up_another_tenant(serve: Serve) -> None:
    """B's request goes next, though thirty of A were before it."""
    served = serve(max_running=1)
    with background() as start:
        flood = [start(served.ask, "sleep 0.1", "a") for _ in range(30)]
        wait_for(lambda: served.stats()["waiting"] >= 25)
        began = time.monotonic()
        assert served.ask("hi", "b").status_code == 200
        waited = time.monotonic() - began
        num_left = sum(not job.done() for job in flood)
        assert num_left >= 15, f"B waited {waited:.2f} s"
        assert all(job.result().status_code == 200 for job in flood)


def test_a_client_that_leaves_the_queue_frees_its_place(serve: Serve) -> None:
    """At once, and the engine never hears of it."""
    served = serve(max_running=1)
    with background() as start:
        first = start(served.ask, "sleep 1.5")
        wait_for(lambda: served.stats()["running"] == 1)
        with leaving(served, prompt="hang"):
            wait_for(lambda: served.stats()["waiting"] == 1)
        wait_for(lambda: served.stats()["waiting"] == 0, 1.0)
        assert not first.done()
        assert first.result().status_code == 200
    assert served.ask().status_code == 200
    assert served.stats()["tenants"]["open"]["running"] == 0


def test_a_client_that_leaves_its_stream_frees_its_place(serve: Serve) -> None:
    """The next one runs."""
    served = serve(max_running=1, max_wait_s=10.0)
    body = {"model": "base-model", "prompt": "hang midway", "stream": True}
    with served.client.stream("POST", "/v1/completions", json=body) as stream:
        chunks = stream.iter_bytes()  # closes the stream when it is forgotten
        assert next(chunks)
        assert served.stats()["running"] == 1
    assert served.ask().status_code == 200


def test_a_server_that_stops_tells_those_who_wait(tmp_path: Path) -> None:
    """Each is answered once: 503 and when to come back."""
    ask = {"model": "base-model", "prompt": "hang"}
    with background() as start:
        with running(make_config(tmp_path, max_running=1)) as gateway:
            gateway.wait_ready()
            url, stats = f"{gateway.url}/v1/completions", f"{gateway.url}/v1/store/stats"
            jobs = [start(httpx.post, url, json=ask, timeout=30) for _ in range(4)]
            wait_for(lambda: httpx.get(stats).json()["quotas"]["waiting"] == 3)
        answers = [job.result() for job in jobs]
    assert [answer.status_code for answer in answers] == [503] * 4
    assert {answer.json()["error"]["code"] for answer in answers} == {"shutting_down"}


def test_the_engine_is_told_a_tag_and_a_share_and_no_name(serve: Serve, tmp_path: Path) -> None:
    """Beside the loadout; a request for the base has no use for them."""
    served = serve({"pool_share": 0.25})
    push(served.client, make_vector(tmp_path / "v.safetensors"), "v")

    def headers(tenant: str, **fields: object) -> dict[str, str]:
        answer = served.ask("echo", tenant, **fields).json()
        seen = json.loads(answer["choices"][0]["text"])["headers"]
        return {k: v for k, v in seen.items() if k.lower().startswith("x-taskvectors-")}

    told = headers("acme", task_vectors={"v": 1})
    assert told["x-taskvectors-share"] == "0.250000"
    assert len(told["x-taskvectors-tenant"]) == 16
    assert "acme" not in told["x-taskvectors-tenant"]
    other = headers("other", task_vectors={"v": 1})
    assert other["x-taskvectors-tenant"] != told["x-taskvectors-tenant"]
    assert headers("acme") == {}


def test_numbers_name_a_bounded_number_of_tenants(serve: Serve) -> None:
    """The rest is added up, and nothing is lost."""
    served = serve()
    for number in range(MAX_LABELS + 20):
        served.charge(10, f"tenant {number}")
    tenants = served.stats()["tenants"]
    assert len(tenants) <= MAX_LABELS + 1
    assert tenants[OTHER]["tokens"] >= 10
    assert sum(numbers["tokens"] for numbers in tenants.values()) == 10 * (MAX_LABELS + 20)


def test_requests_that_never_ran_move_no_turn(serve: Serve) -> None:
    """Else a tenant whose requests wait would come first by sending nonsense beside them."""
    served = serve()
    assert served.ask().status_code == 200
    queue = served.quotas._queue._tenants["open"]
    queue.mean = 500.0  # as if its requests were long
    before = queue.tag, queue.mean
    assert [served.ask(model="nobodys").status_code for _ in range(5)] == [404] * 5
    assert (queue.tag, queue.mean) == before


def test_who_leaves_early_is_not_sooner_for_it(serve: Serve) -> None:
    """What the engine did for it is not known, so it counts for what it was taken for."""
    served = serve()
    queue = served.quotas._queue
    queue._of("a").mean = 500.0
    place, _ = queue.enter("a")
    left = Outcome(
        "r", Principal("a", None, frozenset()), "/v1/completions", "m", None, "", False, 0.0
    )
    left.status, left.charged = 499, place.charged
    served.quotas.observe(left)
    assert (queue._of("a").tag, queue._of("a").mean) == (500.0, 500.0)


def test_listings_and_comparisons_are_counted_by_the_minute(serve: Serve) -> None:
    """Each by its own limit, apart from requests of the model, and by tenant."""
    served = serve({"reads_per_minute": 2, "comparisons_per_minute": 1, "requests_per_minute": 9})

    def ask(method: str, path: str, tenant: str = "acme") -> httpx.Response:
        return served.client.request(method, path, headers={"x-tenant": tenant}, json={})

    answers = [ask("GET", path) for path in ("/v1/models", "/v1/task_vectors", "/v1/usage")]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert "reads_per_minute: limit 2, used 2" in answers[2].json()["error"]["message"]
    assert int(answers[2].headers["retry-after"]) >= 1
    compare = "/v1/task_vectors/interference"
    assert [ask("POST", compare).status_code for _ in range(2)] == [400, 429]
    assert ask("GET", "/v1/models", "other").status_code == 200
    assert ratelimit(served.ask(tenant="acme"))["remaining-requests"] == "8"
    assert served.stats()["tenants"]["acme"]["refused"] == {"rate_limit_exceeded": 2}
    served.set_clock(NOW + 60)
    assert ask("GET", "/v1/models").status_code == 200


def test_feedback_is_counted_by_its_entries(serve: Serve) -> None:
    """A request with more than are left is refused, and nothing of it is stored."""
    served = serve({"feedback_per_minute": 3})

    def send(number: int) -> httpx.Response:
        lines = "\n".join(
            f'{{"request_id": "r{i}", "metric": "helpful", "value": 1}}' for i in range(number)
        )
        headers = {"x-tenant": "acme", "content-type": "application/jsonl"}
        return served.client.post("/v1/feedback", headers=headers, content=lines)

    assert [send(number).status_code for number in (2, 1, 1)] == [200, 200, 429]
    served.set_clock(NOW + 60)
    refused = send(4)
    assert refused.status_code == 429
    assert "feedback_per_minute: limit 3" in refused.json()["error"]["message"]
