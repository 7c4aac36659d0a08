"""Our own OpenAPI document, fuzzed by schemathesis: whatever is sent, the gateway answers.

The default run is short; `make test-all` asks each route a few hundred times.
"""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from outfitter.app import create_app
from tests.outfitter.harness import Running, make_config, make_vector, push, running

UNAVAILABLE = {502, 503, 507}
"""What is documented for an engine, a source or a disk that cannot, and for nothing else."""
SHORT = settings(
    max_examples=6,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)
LONG = settings(SHORT, max_examples=300, derandomize=False)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A gateway of its own: what is fuzzed publishes, saves and deletes."""
    root = tmp_path_factory.mktemp("fuzzed")
    with running(make_config(root)) as gateway:
        gateway.wait_ready()
        with gateway.client as client:
            push(client, make_vector(root / "v"), "json")
            saved = {"name": "acme/support-bot", "task_vectors": {"json": 0.5}}
            assert client.post("/v1/loadouts", json=saved).status_code == 201
        yield gateway


def document(root: Path) -> dict:
    """The app's OpenAPI document, as FastAPI writes it from the routes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GET and HEAD share the name of an operation
        return create_app(make_config(root)).openapi()


for _kind in ("application/offset+octet-stream", "application/jsonl"):
    schemathesis.serializer.alias(_kind, "application/octet-stream")
SCHEMA = schemathesis.openapi.from_dict(document(Path("nowhere")))
_FOUND = [found.ok() for found in SCHEMA.get_all_operations()]
OPERATIONS = {found.label: found for found in sorted(_FOUND, key=lambda found: found.label)}


def check(case: schemathesis.Case, url: str) -> None:
    """Answered, and if refused then in OpenAI's or Anthropic's shape, with an id."""
    answer = case.call(base_url=url, timeout=30)
    status = answer.status_code
    assert status < 500 or status in UNAVAILABLE, (status, answer.text)
    if status == 400 and answer.text == "Invalid HTTP request received.":
        return  # said by the HTTP server: there never was a request
    if status >= 400 and case.method != "HEAD":
        error = json.loads(answer.content)["error"]
        assert error["message"]
        assert {"message", "type", "param", "code"} <= error.keys()
        assert "x-request-id" in answer.headers or error["code"] == "invalid_http"


def fuzz(gateway: Running, label: str, examples: settings) -> None:
    @examples
    @given(case=OPERATIONS[label].as_strategy())
    def ask(case: schemathesis.Case) -> None:
        check(case, gateway.url)

    ask()


@pytest.mark.parametrize("label", OPERATIONS)
def test_every_route_answers(fuzzed: Running, label: str) -> None:
    """No 5xx, and every refusal says why."""
    fuzz(fuzzed, label, SHORT)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("label", OPERATIONS)
def test_every_route_answers_for_long(fuzzed: Running, label: str) -> None:
    """The same, three hundred times each."""
    fuzz(fuzzed, label, LONG)


def test_every_route_that_reads_json_says_which() -> None:
    """Else fuzzing it means nothing."""
    paths = SCHEMA.raw_schema["paths"]
    bare = {
        f"{method.upper()} {path}"
        for path, methods in paths.items()
        for method, operation in methods.items()
        if method in ("post", "put", "patch") and "requestBody" not in operation
    }
    assert bare == {"PUT /v1/tenants/{tenant}/namespaces/{namespace}"}  # which reads none
    assert len(OPERATIONS) > 30
