"""What a gateway does beside its requests, and how it ends."""

from pathlib import Path

import pytest

from outfitter.accounts import Accounts
from outfitter.observers.usage import UsageLedger
from outfitter.state.tenancy import TrailQuery
from outfitter.state.usage import UsageQuery, UsageTable
from tests.outfitter.harness import make_config, opened, running, wait_for

ASK = {"model": "base-model", "prompt": "p"}
EVER = UsageQuery("2000-01-01", "2999-01-01")


@pytest.mark.parametrize(("owner", "method"), [(Accounts, "flush"), (UsageLedger, "flush")])
def test_a_fault_of_what_writes_ends_neither_it_nor_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, method: str
) -> None:
    """It goes on, and at the end everything is written down and closed."""
    for place in ("outfitter.flushing.FLUSH_S", "outfitter.observers.usage.FLUSH_S"):
        monkeypatch.setattr(place, 0.05)
    real, calls = getattr(owner, method), []

    def fail(self: object) -> object:
        calls.append(1)
        if len(calls) < 3:
            raise RuntimeError("a fault")
        return real(self)

    monkeypatch.setattr(owner, method, fail)
    config = make_config(tmp_path)
    with running(config) as gateway, gateway.client as client:
        gateway.wait_ready()
        assert client.post("/v1/completions", json=ASK).status_code == 200
        wait_for(lambda: len(calls) > 3)
        assert client.post("/v1/completions", json=ASK).status_code == 200
    with opened(config) as vectors:
        database = vectors.catalog.database
        [row] = UsageTable(database).find(EVER)
        uses, _ = Accounts(database, vectors.resolver).used_loadouts(TrailQuery())
    assert (row["requests"], sum(use.count for use in uses)) == (2, 2)
