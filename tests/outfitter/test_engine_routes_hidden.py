"""The engine's own routes stay behind the gateway: no spelling of their paths gets there."""

import http.client
from urllib.parse import urlsplit

import httpx
import pytest

from outfitter.control.surface import ROUTES
from tests.outfitter.engine_document import document
from tests.outfitter.harness import Running

PATHS = (
    "/taskvectors/stats",
    "/taskvectors/prefetch",
    "/taskvectors/promotion",
    "/taskvectors",
    "/taskvectors/",
    "/taskvectors/stats/",
    "/taskvectors/stats?x=1",
    "//taskvectors/stats",
    "/./taskvectors/stats",
    "/v1/../taskvectors/stats",
    "/%2e%2e/taskvectors/stats",
    "/v1/%2e%2e/taskvectors/stats",
    "/v1%2f..%2ftaskvectors/stats",
    "/taskvectors%2fstats",
    "/%74askvectors/stats",
    "/%2ftaskvectors/stats",
    "/taskvectors%252fstats",
    "/taskvectors/prefetch%00",
    "/taskvectors;x/stats",
    "/TASKVECTORS/STATS",
    "/v1/taskvectors/stats",
)
OURS = {route.path for route in ROUTES} | {"/v1/models", "/metrics"}
"""What vLLM calls as the gateway calls something of its own."""
VLLMS = sorted({path for _, path in document()["routes"]} - OURS)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE")
BODY = b'{"digests": [], "pin": true}'


def ask(gateway: Running, method: str, target: str) -> tuple[int, bytes]:
    """The request line as it is: an HTTP client of comfort would tidy the path."""
    where = urlsplit(gateway.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=30)
    try:
        connection.putrequest(method, target, skip_host=target.startswith("http"))
        if target.startswith("http"):
            connection.putheader("Host", where.netloc)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(BODY)))
        connection.endheaders(BODY)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize("path", VLLMS)
def test_no_route_of_vllms_own_reaches_it(gateway: Running, path: str) -> None:
    """Of all that it can have, in its development mode too: 404 for every method."""
    target = path.replace("{", "").replace("}", "")
    for method in METHODS:
        status, body = ask(gateway, method, target)
        assert status in (404, 405), (method, target)
        codes = (b'"unknown_route"', b'"unsupported_route"', b'"method_not_allowed"')
        assert method == "HEAD" or any(code in body for code in codes), (method, target)


def test_the_list_of_vllms_routes_has_the_dangerous_ones() -> None:
    """Else the test above proves nothing."""
    assert {
        *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/invocations", "/sleep"),
        *("/pause", "/collective_rpc", "/reset_prefix_cache", "/server_info", "/update_weights"),
        *("/inference/v1/generate", "/adapters", "/scale_elastic_ep", "/abort_requests"),
        *("/v1/chat/completions/render", "/docs", "/openapi.json", "/load", "/version"),
    } <= set(VLLMS)


@pytest.mark.parametrize("path", PATHS)
def test_no_method_and_no_spelling_reaches_the_engine(gateway: Running, path: str) -> None:
    for method in METHODS:
        status, body = ask(gateway, method, path)
        assert status == 404, (method, path)
        assert method == "HEAD" or b'"unknown_route"' in body, (method, path)


def test_a_path_below_a_route_of_the_gateway_is_answered_by_it(gateway: Running) -> None:
    """It is taken for the name of a model, and nobody goes up from there."""
    for target in (
        "/v1/models/../../taskvectors/stats",
        "/v1/models/%2e%2e/%2e%2e/taskvectors/stats",
    ):
        status, body = ask(gateway, "GET", target)
        assert (status, b'"model_not_found"' in body) == (404, True)


def test_an_absolute_target_does_not_reach_the_engine(gateway: Running) -> None:
    """As a proxy is asked."""
    for host in (gateway.url, "http://engine", "http://localhost"):
        assert ask(gateway, "GET", f"{host}/taskvectors/stats")[0] in (400, 404)


def test_the_engine_itself_has_them(gateway: Running, client: httpx.Client) -> None:
    """Else the tests above prove nothing: what the gateway asks there is answered."""
    assert client.get("/v1/store/stats").status_code == 200
    assert "/taskvectors/stats" not in client.get("/openapi.json").text
