"""The gateway that tests share."""

from collections.abc import Iterator

import httpx
import pytest

from tests.outfitter.harness import Running, make_config, running


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One gateway for all tests that leave it as it was."""
    root = tmp_path_factory.mktemp("gateway")
    with running(make_config(root)) as found:
        yield found.wait_ready()


@pytest.fixture
def client(gateway: Running) -> Iterator[httpx.Client]:
    with gateway.client as client:
        yield client
