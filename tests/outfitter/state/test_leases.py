"""Leases: one holder at a time, on both databases, and another one when it dies."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from outfitter.state.catalog import Catalog
from outfitter.state.leases import Lease
from tests.outfitter.harness import wait_for

HOLD = """
import sys, time
from outfitter.state.catalog import Catalog
from outfitter.state.leases import Lease
lease = Lease(Catalog(sys.argv[1]).database, "act", "other", 1.5)
print(lease.take(), flush=True)
while True:
    time.sleep(0.2)
    lease.take()
"""


@pytest.fixture
def catalog(database_url: str) -> Iterator[Catalog]:
    catalog = Catalog(database_url)
    yield catalog
    catalog.close()


def test_one_holds_it_until_it_is_silent_for_too_long(catalog: Catalog) -> None:
    now = [100.0]
    a, b = (Lease(catalog.database, "act", name, 10, clock=lambda: now[0]) for name in ("a", "b"))
    assert a.take()
    assert not b.take()
    now[0] += 9
    assert a.take()  # renewed
    now[0] += 9
    assert not b.take()
    now[0] += 2
    assert b.take()
    assert not a.take()


def test_names_have_leases_of_their_own_and_one_can_be_given_back(catalog: Catalog) -> None:
    a, b = (Lease(catalog.database, "act", name, 10) for name in ("a", "b"))
    other = Lease(catalog.database, "other", "b", 10)
    assert a.take()
    assert other.take()
    b.give_back()  # not its own
    assert not b.take()
    a.give_back()
    assert b.take()


def test_a_killed_holder_is_followed_by_another(catalog: Catalog, database_url: str) -> None:
    """It goes on as soon as the lease of the dead one is over, not before."""
    command = [sys.executable, "-c", HOLD, database_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        mine = Lease(catalog.database, "act", "mine", 1.5)
        for _ in range(8):
            assert not mine.take()
            time.sleep(0.25)
        other.send_signal(signal.SIGKILL)
        other.wait()
        wait_for(mine.take)
