"""Two replicas of one real catalog: each sees what the other wrote, with Redis or without it."""

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from outfitter.state import generation
from outfitter.state.catalog import Catalog
from outfitter.state.changes import Changes
from outfitter.state.resolver import Resolver
from taskvectors.errors import VectorNotFound
from tests import services
from tests.outfitter.state.making import publish, ref

BOUND_S = 1.0
"""A question that comes so long after a write was acknowledged is answered right."""


class Deaf(Changes):
    """Subscribed, but every message is lost on the way."""

    def listen(self, heard: Callable[[int | None], None]) -> None:
        del heard
        super().listen(lambda generation: None)

    def publish(self, generation: int) -> None:
        """Lost."""


class Replica:
    """A catalog and its resolver."""

    def __init__(self, database_url: str, changes: Changes) -> None:
        self.catalog = Catalog(database_url)
        self.resolver = Resolver(self.catalog, changes)

    def number(self, text: str) -> int | None:
        try:
            return self.resolver.version(ref(text)).version
        except VectorNotFound:
            return None

    def close(self) -> None:
        self.resolver.close()
        self.catalog.close()


@contextmanager
def replicas(url: str, make: Callable[[], Changes]) -> Iterator[tuple[Replica, Replica]]:
    """Two, which hear each other if they can hear anything."""
    both = Replica(url, make()), Replica(url, make())
    try:
        for one in both:
            if one.resolver.changes.is_configured:
                eventually(lambda one=one: one.resolver.changes.is_connected)
        yield both
    finally:
        for one in both:
            one.close()


def eventually(holds: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def seen(reader: Replica, text: str, expected: int | None) -> None:
    """Ask all the time: no question from BOUND_S after now on may be answered wrong."""
    acknowledged = time.monotonic()
    while True:
        asked = time.monotonic()
        if (found := reader.number(text)) == expected:
            return
        assert asked - acknowledged < BOUND_S, f"{text} is {found}, not {expected}"
        time.sleep(0.02)


def write_and_look(writer: Replica, reader: Replica) -> None:
    """A publish, a moved tag and a delete; the reader has cached what was so before each."""
    assert reader.number("acme/json") is None
    publish(writer.catalog, "acme/json", 1, "stable")
    writer.resolver.changed()
    seen(reader, "acme/json", 1)
    publish(writer.catalog, "acme/json", 2)
    writer.resolver.changed()
    seen(reader, "acme/json", 2)
    assert reader.number("acme/json@stable") == 1
    writer.catalog.tag(ref("acme/json@2"), "stable")
    writer.resolver.changed()
    seen(reader, "acme/json@stable", 2)
    assert reader.number("acme/json@1") == 1
    writer.catalog.delete(ref("acme/json@1"))
    writer.resolver.changed()
    seen(reader, "acme/json@1", None)
    assert writer.number("acme/json@1") is None


@pytest.mark.parametrize("kind", ["heard", "lost", "no Redis"])
def test_the_other_replica_sees_every_write(
    kind: str, database_url: str, redis_url: str, redis_prefix: str
) -> None:
    """In time, whether messages come, are lost, or cannot be sent."""
    make = {
        "heard": lambda: Changes(redis_url, redis_prefix),
        "lost": lambda: Deaf(redis_url, redis_prefix),
        "no Redis": lambda: Changes(None, redis_prefix),
    }[kind]
    with replicas(database_url, make) as (one, other):
        write_and_look(one, other)


def test_a_message_alone_is_enough(
    database_url: str, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if what was read of the catalog is believed for longer than this test takes."""
    monkeypatch.setattr(generation, "BOUND_S", 60.0)
    monkeypatch.setattr(generation, "REFRESH_AFTER_S", 50.0)
    with replicas(database_url, lambda: Changes(redis_url, redis_prefix)) as (one, other):
        assert other.number("json") is None
        publish(one.catalog, "json", 1)
        one.resolver.changed()
        eventually(lambda: other.number("json") == 1)
        one.catalog.delete(ref("json@1"))
        one.resolver.changed()
        eventually(lambda: other.number("json@1") is None)


def test_a_message_is_heard_before_the_generation_is_old(
    database_url: str, redis_url: str, redis_prefix: str
) -> None:
    """What is announced is the generation that the catalog has after the write."""
    heard: list[int | None] = []
    listener = Changes(redis_url, redis_prefix)
    listener.listen(heard.append)
    try:
        eventually(lambda: heard == [None])
        with replicas(database_url, lambda: Changes(redis_url, redis_prefix)) as (one, _):
            publish(one.catalog, "json", 1)
            one.resolver.changed()
            eventually(lambda: one.catalog.generation() in heard)
    finally:
        listener.close()


def test_without_valkey_there_is_one_warning_and_with_it_messages_again(
    database_url: str, tmp_path: Path, redis_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed, nothing fails and nothing is late; back, the subscription is there again."""
    caplog.set_level(logging.WARNING, "outfitter.state")
    with (
        services.valkey(tmp_path) as server,
        replicas(database_url, lambda: Changes(server.url, redis_prefix)) as (one, other),
    ):
        heard_by = [one.resolver.changes, other.resolver.changes]
        server.kill()
        write_and_look(one, other)
        eventually(lambda: not any(changes.is_connected for changes in heard_by))
        time.sleep(1.0)  # several attempts to connect
        lost = [r for r in caplog.records if "no messages about changes" in r.getMessage()]
        assert len(lost) == len(heard_by)
        server.start()
        eventually(lambda: all(changes.is_connected for changes in heard_by))
        publish(one.catalog, "acme/json", 3)
        one.resolver.changed()
        seen(other, "acme/json", 3)


WRITER = """
import sys
from outfitter.state.catalog import Catalog
from outfitter.state.changes import Changes
from outfitter.state.resolver import Resolver
from tests.outfitter.state.making import publish, ref
catalog = Catalog(sys.argv[1])
resolver = Resolver(catalog, Changes(sys.argv[2], sys.argv[3]))
for line in sys.stdin:
    if line == "publish\\n":
        publish(catalog, "acme/json", "other", "stable")
    else:
        catalog.delete(ref("acme/json@2"))
    resolver.changed()
    print("done", flush=True)
"""


def test_another_process_is_seen(database_url: str, redis_url: str, redis_prefix: str) -> None:
    """Publish, move of a tag and delete, as between two gateways."""
    reader = Replica(database_url, Changes(redis_url, redis_prefix))
    publish(reader.catalog, "acme/json", 1, "stable")
    command = [sys.executable, "-c", WRITER, database_url, redis_url, redis_prefix]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as writer:
        assert writer.stdin
        assert writer.stdout
        for order, references in (
            ("publish\n", {"acme/json": 2, "acme/json@stable": 2}),
            ("delete\n", {"acme/json": 1, "acme/json@2": None}),
        ):
            before = [reader.number(text) for text in references]
            assert before != list(references.values())
            writer.stdin.write(order)
            writer.stdin.flush()
            assert writer.stdout.readline() == "done\n"
            for text, expected in references.items():
                seen(reader, text, expected)
    reader.close()
