"""Brings events from the journals and the stream into the database, beside the requests."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from outfitter.control.experiments.event import BadEvent, Event
from outfitter.errors import CatalogConflict, CatalogUnavailable, InvalidDetails
from outfitter.experiments.events.journal import Journal, Segment
from outfitter.experiments.events.streams import Entry, Stream
from taskvectors.errors import TierUnavailable

log = logging.getLogger(__name__)

FLUSH_S = 1.0
MAX_FLUSH_S = 15.0
"""Between attempts while the database is away."""
BATCH = 500
TIDY_S = 3600.0
ORPHANS_S = 5.0
"""How often the journals of the dead are looked for."""


class EventWriter:
    """Writes from time to time until `close`, then once more; what is left stays where it is.

    add: `Events.add`; what it cannot hold is left out, and counted. tidy: called every hour. Both
    are called in threads.
    """

    def __init__(
        self,
        journal: Journal,
        stream: Stream | None,
        add: Callable[[Sequence[Event]], None],
        tidy: Callable[[], object],
    ) -> None:
        self._journal, self._stream, self._add, self._tidy = journal, stream, add, tidy
        self._is_closing = asyncio.Event()
        self._read: list[Entry] = []
        self._next_orphans = 0.0
        self._next_tidying = time.monotonic() + TIDY_S
        self.num_written = 0
        self.num_bad = 0
        """Events that could not be read, or that the database cannot hold."""
        self.failures = 0
        """Attempts to write that failed."""

    async def run(self) -> None:
        """Until `close`."""
        patience = FLUSH_S
        while not self._is_closing.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_closing.wait(), patience)
            patience = FLUSH_S if await self.flush() else min(2 * patience, MAX_FLUSH_S)
        await self.flush()

    def close(self) -> None:
        """Let `run` come to its end."""
        self._is_closing.set()

    async def flush(self) -> bool:
        """Write what there is; False when some of it has to be tried again."""
        try:
            await self._flush_journals()
            await self._flush_stream()
            await self._tidy_up()
        except (CatalogUnavailable, CatalogConflict) as error:
            self.failures += 1
            log.warning("events of experiments are not written yet, and kept: %s", error)
            return False
        except Exception:  # it must not end the writing of what follows
            self.failures += 1
            log.exception("events of experiments could not be written")
            return False
        return True

    async def _flush_journals(self) -> None:
        for segment in await asyncio.to_thread(self._journal.take):
            await self._write_segment(segment)
            await asyncio.to_thread(self._journal.drop, segment)
        now = time.monotonic()
        if now < self._next_orphans:
            return
        self._next_orphans = now + ORPHANS_S
        orphans = await asyncio.to_thread(lambda: list(self._journal.orphans()))
        try:
            while orphans:
                await self._write_segment(orphans[-1])
                segment = orphans.pop()
                await asyncio.to_thread(segment.drop)
                log.warning("took over %d bytes of events of a gateway that is gone", segment.size)
        finally:
            for segment in orphans:
                segment.leave()

    async def _write_segment(self, segment: Segment) -> None:
        lines = await asyncio.to_thread(segment.lines)
        for start in range(0, len(lines), BATCH):
            await self._write(lines[start : start + BATCH])

    async def _flush_stream(self) -> None:
        if self._stream is None:
            return
        with contextlib.suppress(TierUnavailable):  # whoever appends tells of it
            while self._read or await self._fill():
                await self._write([line for _, line in self._read])
                await self._stream.done([id_ for id_, _ in self._read])
                self._read = []

    async def _fill(self) -> bool:
        """Whether there is something to write."""
        assert self._stream is not None
        self._read = await self._stream.read()
        return bool(self._read)

    async def _tidy_up(self) -> None:
        if time.monotonic() > self._next_tidying:
            self._next_tidying = time.monotonic() + TIDY_S
            await asyncio.to_thread(self._tidy)

    async def _write(self, lines: Sequence[bytes]) -> None:
        events = []
        for line in lines:
            try:
                events.append(Event.load(line))
            except BadEvent as error:
                self._leave_out(error)
        if events:
            await asyncio.to_thread(self._write_all, events)
            self.num_written += len(events)

    def _write_all(self, events: Sequence[Event]) -> None:
        """All at once; where the database cannot hold one of them, one by one."""
        try:
            self._add(events)
        except InvalidDetails:
            for event in events:
                try:
                    self._add([event])
                except InvalidDetails as error:
                    self._leave_out(error)

    def _leave_out(self, error: Exception) -> None:
        self.num_bad += 1
        log.error("an event of an experiment is left out: %s", error)
