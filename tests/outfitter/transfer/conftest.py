"""Servers to fetch from."""

from collections.abc import Iterator

import pytest

from tests.outfitter.transfer.web_server import WebServer, serving


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not wait for servers to come back."""
    monkeypatch.setattr("outfitter.transfer.download.BACKOFF_S", 0.001)
    monkeypatch.setattr("outfitter.transfer.web.BACKOFF_S", 0.001)
