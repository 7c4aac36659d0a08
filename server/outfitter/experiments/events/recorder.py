"""Records what experiments are to know of a request, before the last bytes of its answer go out."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from outfitter.control.experiments.event import Event
from outfitter.control.experiments.graders import Grader, NotGraded
from outfitter.control.outcome import Outcome
from outfitter.control.prices import Prices
from outfitter.engine.answers import AnswerReader
from outfitter.experiments.events.journal import Journal
from outfitter.experiments.events.streams import Stream
from outfitter.experiments.events.writer import EventWriter
from taskvectors.errors import TierUnavailable
from taskvectors.store.breaker import Breaker
from taskvectors.store.redis_client import RedisClient

log = logging.getLogger(__name__)

AWAY_S = 1.0
MAX_GRADING = 256
"""Answers that wait for their grades; further ones have none."""


@dataclass(frozen=True)
class _Ungraded:
    event: Event
    text: str
    graders: Sequence[Grader]


class Recorder:
    """Takes events, durably: into the stream where there is Redis and it answers, else a journal.

    Grades follow, beside the requests, as the same event once more. add: `Events.add`. tidy:
    called now and then in a thread.
    """

    def __init__(
        self,
        folder: Path,
        add: Callable[[Sequence[Event]], None],
        tidy: Callable[[], object],
        prices: Prices,
        redis_url: str | None = None,
        redis_prefix: str = "",
    ) -> None:
        self._prices = prices
        self._journal = Journal(folder)
        self._stream = _open(redis_url, redis_prefix)
        where = "" if redis_url is None else RedisClient(redis_url, 1.0).where
        self._breaker = Breaker(f"Redis at {where}, for events of experiments,", away_s=AWAY_S)
        self.writer = EventWriter(self._journal, self._stream, add, tidy)
        self._ungraded: asyncio.Queue[_Ungraded | None] = asyncio.Queue(MAX_GRADING)
        self._appending: set[asyncio.Task[None]] = set()
        self.num_recorded = self.num_ungraded = 0

    def begin(self, outcome: Outcome) -> "Recording | None":
        """What is to see the answer to a request; None where no experiment serves it."""
        return None if outcome.exposure is None else Recording(self, outcome)

    def __call__(self, outcome: Outcome) -> None:
        """An observer: record a request that has ended, unless that was done before."""
        event = self.event_of(outcome, outcome.status)
        if event is None:
            return
        if self._stream is None:
            self._journal.append(event.dump())
            return
        self._begin_to_append(event)

    def event_of(self, outcome: Outcome, status: int) -> Event | None:
        """The one event of a request; None where it has none, or is recorded already."""
        if outcome.is_recorded or outcome.exposure is None:
            return None
        outcome.is_recorded = True
        event = Event.of(outcome, status, self._prices)
        self.num_recorded += event is not None
        return event

    async def append(self, event: Event) -> None:
        """Return when the event survives this process, whoever waits no longer; never fails."""
        if self._stream is None:
            self._journal.append(event.dump())
        else:
            await asyncio.shield(self._begin_to_append(event))

    def grade(self, event: Event, text: str | None, graders: Sequence[Grader]) -> None:
        """Let an answer be graded soon. text: None where it is too long for that."""
        if text is None or self._ungraded.full():
            self.num_ungraded += len(graders)
        else:
            self._ungraded.put_nowait(_Ungraded(event, text, graders))

    async def run(self) -> None:
        """Write and grade until `close`."""
        grading = asyncio.create_task(self._grade_all())
        try:
            await self.writer.run()
        finally:
            await self._ungraded.put(None)
            await asyncio.wait({grading, *self._appending})
            await self.writer.flush()
            self._journal.close()
            if self._stream is not None:
                await self._stream.close()

    def close(self) -> None:
        """Let `run` come to its end."""
        self.writer.close()

    def stats(self) -> dict[str, Any]:
        """lost: for which the journal had no room. bad: which the database could not hold."""
        total = {
            "recorded": self.num_recorded,
            "written": self.writer.num_written,
            "lost": self._journal.num_lost,
            "bad": self.writer.num_bad,
            "ungraded": self.num_ungraded,
        }
        return {
            "total": total,
            "failures": self.writer.failures,
            "journal_bytes": self._journal.nbytes,
            "is_shared": self._stream is not None,
            "is_up": self._breaker.is_up,
        }

    def _begin_to_append(self, event: Event) -> "asyncio.Task[None]":
        task = asyncio.create_task(self._append(event.dump()))
        self._appending.add(task)
        task.add_done_callback(self._appending.discard)
        return task

    async def _append(self, line: bytes) -> None:
        assert self._stream is not None
        with suppress(TierUnavailable), self._breaker.calling():
            await self._stream.append(line)
            return
        self._journal.append(line)

    async def _grade_all(self) -> None:
        while (one := await self._ungraded.get()) is not None:
            try:
                grades = await asyncio.to_thread(_graded, one.text, one.graders)
            except Exception:  # the next one may be graded
                log.exception("an answer could not be graded")
                continue
            self.num_ungraded += len(one.graders) - len(grades)
            if grades:
                await self.append(replace(one.event, grades=grades))


class Recording:
    """Sees one answer, and records its request once."""

    def __init__(self, recorder: Recorder, outcome: Outcome) -> None:
        assert outcome.exposure is not None
        self._recorder, self._outcome = recorder, outcome
        known = outcome.exposure.graders
        self._graders = [one for one in known if one.is_sampled(outcome.request_id)]
        self._reader = AnswerReader(wants_text=bool(self._graders))

    def feed(self, lines: bytes) -> None:
        """Some whole lines of a stream."""
        self._reader.feed(lines)

    def whole(self, body: bytes) -> None:
        """A whole answer."""
        self._reader.whole(body)

    async def settle(self, status: int) -> None:
        """Record the request, which is about to end so. Whoever is killed after it counts it."""
        self._outcome.finish_reason = self._reader.finish_reason
        event = self._recorder.event_of(self._outcome, status)
        if event is None:
            return
        await self._recorder.append(event)
        if self._graders and status < 400:
            self._recorder.grade(event, self._reader.text, self._graders)


def _graded(text: str, graders: Sequence[Grader]) -> dict[str, float]:
    grades = {}
    for grader in graders:
        try:
            grades[grader.name] = grader.grade(text)
        except NotGraded as error:
            log.warning("an answer has no grade: %s", error)
    return grades


def _open(url: str | None, prefix: str) -> Stream | None:
    """None without a URL, and for a cluster."""
    if url is None:
        return None
    if RedisClient(url, 1.0).is_cluster:
        log.warning("events of experiments go through journals: a Redis cluster is not asked")
        return None
    return Stream(url, f"{prefix}:experiments:events")
