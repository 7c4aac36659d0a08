"""The engine's own two routes answer with the promised shapes, whatever they are sent."""

import asyncio
import json
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from taskvectors.errors import EngineUnavailable, PromotionTooLarge
from taskvectors.spec import Loadout, LoadoutItem
from taskvectors.vllm_plugin import control
from taskvectors.vllm_plugin.endpoint import LoadoutMiddleware

SEED = 20
DIGESTS = ["a" * 64, "b" * 64]
STATS = {"tiers": {}, "pool": {"vectors": 1}, "load_seconds": {"count": 0, "sum": 0.0}}


class Service:
    """Remembers what it was asked to warm."""

    def __init__(self) -> None:
        self.warmed: list[tuple[list[str], bool]] = []
        self.error: Exception | None = None

    async def warm(self, digests: Sequence[str], *, pin: bool) -> dict[str, str]:
        if self.error is not None:
            raise self.error
        self.warmed.append((list(digests), pin))
        return dict.fromkeys(digests, "ready")

    async def stats(self) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        return STATS

    async def promote(self, loadout: Loadout) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        return {"loadout": loadout.canonical}

    async def demote(self) -> dict[str, Any]:
        return {"loadout": None}

    async def promotion(self, *, checksum: bool) -> dict[str, Any]:
        return {"loadout": None, "checksum": checksum}


async def vllm(_scope: Any, receive: Any, send: Any) -> None:
    """vLLM's own application, which has none of these routes."""
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def client(service: Service) -> TestClient:
    middleware = LoadoutMiddleware(vllm)
    middleware._service = service  # type: ignore[assignment]
    return TestClient(middleware)


def prefetch(client: TestClient, body: bytes) -> Any:
    return client.post("/taskvectors/prefetch", content=body)


def test_stats_are_an_object_of_tiers_pool_and_seconds(client: TestClient) -> None:
    response = client.get("/taskvectors/stats")
    assert response.status_code == 200
    assert response.json() == STATS


@pytest.mark.parametrize("pin", [None, False, True])
def test_a_prefetch_tells_the_state_of_each_digest(
    client: TestClient, service: Service, pin: bool | None
) -> None:
    body = {"digests": DIGESTS} | ({} if pin is None else {"pin": pin})
    response = prefetch(client, json.dumps(body).encode())
    assert response.status_code == 200
    assert response.json() == {"states": dict.fromkeys(DIGESTS, "ready")}
    assert service.warmed == [(DIGESTS, bool(pin))]


def test_a_prefetch_of_nothing_is_answered(client: TestClient) -> None:
    assert prefetch(client, b'{"digests": []}').json() == {"states": {}}


BAD = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"digests"',
    b"{}",
    b'{"pin": true}',
    b'{"digests": [], "more": 1}',
    b'{"digests": null}',
    b'{"digests": {}}',
    b'{"digests": "' + b"a" * 64 + b'"}',
    b'{"digests": [1]}',
    b'{"digests": [null]}',
    b'{"digests": [["' + b"a" * 64 + b'"]]}',
    b'{"digests": ["' + b"A" * 64 + b'"]}',
    b'{"digests": ["' + b"a" * 63 + b'"]}',
    b'{"digests": ["' + b"a" * 64 + b'\\n"]}',
    b'{"digests": ["sha256:' + b"a" * 64 + b'"]}',
    b'{"digests": ["../../etc/passwd"]}',
    b'{"digests": [], "pin": 1}',
    b'{"digests": [], "pin": "true"}',
    b'{"digests": [], "pin": null}',
    b'{"digests": [], "digests": []}',
    b'{"digests": [' + b"9" * 5000 + b"]}",
    b'{"digests": [1e999]}',
    b'{"digests": ["\\ud800"]}',
    b'{"digests": ["\xff"]}',
    b'{"digests": ' + b"[" * 100_000,
]


@pytest.mark.parametrize("body", BAD, ids=range(len(BAD)))
def test_a_bad_body_is_refused_and_nothing_is_warmed(
    client: TestClient, service: Service, body: bytes
) -> None:
    response = prefetch(client, body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_loadout"
    assert len(response.content) < 1000
    assert service.warmed == []


def test_no_body_raises(client: TestClient) -> None:
    """A thousand changes to a good one: each is answered with 200 or 400."""
    rng = random.Random(SEED)
    good = json.dumps({"digests": DIGESTS, "pin": False}).encode()
    seen = set()
    for _ in range(1000):
        body = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        seen.add(prefetch(client, bytes(body)).status_code)
    assert seen == {200, 400}, f"seed {SEED}"


@pytest.mark.parametrize(("count", "status"), [(4096, 200), (4097, 400)])
def test_the_number_of_digests_is_bounded(client: TestClient, count: int, status: int) -> None:
    digests = [f"{number:064x}" for number in range(count)]
    assert prefetch(client, json.dumps({"digests": digests}).encode()).status_code == status


@pytest.mark.parametrize(
    ("nbytes", "status"), [(control.MAX_BODY, 200), (control.MAX_BODY + 1, 400)]
)
def test_the_size_of_a_body_is_bounded(client: TestClient, nbytes: int, status: int) -> None:
    assert prefetch(client, b'{"digests": []}'.ljust(nbytes)).status_code == status


def test_an_endless_body_is_not_read_to_its_end(service: Service) -> None:
    middleware, sent, count = LoadoutMiddleware(vllm), [], 0
    middleware._service = service  # type: ignore[assignment]
    scope = {"type": "http", "method": "POST", "path": "/taskvectors/prefetch", "headers": []}

    async def receive() -> dict[str, Any]:
        nonlocal count
        count += 1
        return {"type": "http.request", "body": bytes(1 << 18), "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(middleware(scope, receive, send))
    assert sent[0]["status"] == 400
    assert count == 5


def test_a_client_that_leaves_in_its_body_is_no_error(service: Service) -> None:
    middleware, sent = LoadoutMiddleware(vllm), []
    middleware._service = service  # type: ignore[assignment]
    scope = {"type": "http", "method": "POST", "path": "/taskvectors/prefetch", "headers": []}

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(middleware(scope, receive, send))
    assert sent == []
    assert service.warmed == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/taskvectors/stats"),
        ("GET", "/taskvectors/prefetch"),
        ("GET", "/taskvectors/stats/"),
        ("GET", "/taskvectors"),
        ("GET", "/v1/models"),
    ],
)
def test_any_other_request_is_left_to_the_engine(
    client: TestClient, method: str, path: str
) -> None:
    assert client.request(method, path).status_code == 418


def test_an_engine_that_does_not_answer_is_a_reason_to_try_again(
    client: TestClient, service: Service
) -> None:
    service.error = EngineUnavailable("the engine does not answer; try again")
    for response in (client.get("/taskvectors/stats"), prefetch(client, b'{"digests": []}')):
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert response.json()["error"]["code"] == "engine_unavailable"


def test_an_engine_without_task_vectors_says_so() -> None:
    """Its application has the middleware, and its config lacks our key."""
    config = SimpleNamespace(additional_config={}, lora_config=None)
    state = SimpleNamespace(engine_client=SimpleNamespace(vllm_config=config))
    scope_app = SimpleNamespace(state=state)
    sent: list[Any] = []
    scope = {"type": "http", "method": "GET", "path": "/taskvectors/stats", "app": scope_app}

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    asyncio.run(LoadoutMiddleware(vllm)(scope, receive, send))
    assert sent[0]["status"] == 500
    assert b"--enable-lora" in sent[1]["body"]


PROMOTION = "/taskvectors/promotion"


def test_a_loadout_is_promoted_shown_and_demoted(client: TestClient) -> None:
    """The canonical loadout goes in, the worker's state comes out."""
    loadout = Loadout.build([LoadoutItem(DIGESTS[0], 0.5)])
    response = client.post(PROMOTION, json={"loadout": loadout.canonical})
    assert (response.status_code, response.json()) == (200, {"loadout": loadout.canonical})
    assert client.get(PROMOTION).json() == {"loadout": None, "checksum": False}
    assert client.get(f"{PROMOTION}?checksum=true").json()["checksum"] is True
    assert client.delete(PROMOTION).json() == {"loadout": None}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"loadout": 3}',
        b'{"loadout": "x"}',
        b'{"loadout": "{}", "x": 1}',
        b'{"loadout": null}',
        b'{"loadout": "{\\"method\\": \\"linear\\", \\"vectors\\": []}"}',
    ],
)
def test_what_is_no_loadout_is_not_promoted(client: TestClient, body: bytes) -> None:
    """400, in vLLM's error shape; the last is a loadout, but not in its canonical form."""
    response = client.post(PROMOTION, content=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] == "invalid_loadout"


def test_a_checksum_is_wanted_or_not(client: TestClient) -> None:
    assert client.get(f"{PROMOTION}?checksum=perhaps").status_code == 400


def test_a_promotion_that_does_not_fit_says_so(client: TestClient, service: Service) -> None:
    service.error = PromotionTooLarge("too large")
    loadout = Loadout.build([LoadoutItem(DIGESTS[0], 0.5)])
    response = client.post(PROMOTION, json={"loadout": loadout.canonical})
    assert response.status_code == 507
    assert response.json()["error"]["code"] == "promotion_too_large"
