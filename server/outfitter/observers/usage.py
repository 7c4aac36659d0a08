"""Adds up what each key used, and writes it down every few seconds, beside the requests."""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Mapping

from outfitter.control.outcome import Outcome
from outfitter.errors import CatalogConflict, CatalogUnavailable, InvalidDetails
from outfitter.flushing import tried, until_closed
from outfitter.state.models import MAX_USAGE_TEXT
from outfitter.state.usage import UsageKey, Used

log = logging.getLogger(__name__)

FLUSH_S = 2.0
MAX_FLUSH_S = 30.0
"""Between attempts while the database is away."""
MAX_KEYS = 20_000
"""Sums held while the database is away; further ones are added up by day and tenant "(other)"."""
OTHER = "(other)"


class UsageLedger:
    """An observer that sums in memory. A crash loses what was not written: the last seconds.

    add: `UsageTable.add`; called in a thread. base: what the base is called in the sums. A batch
    that may or may not have been written is tried again under its number, so it counts once.
    """

    def __init__(self, add: Callable[[str, int, Mapping[UsageKey, Used]], None], base: str) -> None:
        self._add = add
        self._base = base
        self._writer = uuid.uuid4().hex
        self._number = 0
        self._sums: dict[UsageKey, Used] = {}
        self._batch: dict[UsageKey, Used] = {}
        self._is_closing = asyncio.Event()
        self.failures = 0
        """Attempts to write that failed."""

    def __call__(self, outcome: Outcome) -> None:
        """Add a request that has ended."""
        used = self._sum_of(self._key(outcome))
        used.requests += 1
        used.prompt_tokens += outcome.prompt_tokens
        used.cached_tokens += outcome.cached_tokens
        used.completion_tokens += outcome.completion_tokens
        used.errors += outcome.is_error

    @property
    def num_pending(self) -> int:
        """Sums that are not written yet."""
        return len(self._sums) + len(self._batch)

    async def run(self) -> None:
        """Write from time to time until `close`, then once more."""
        await until_closed(self._is_closing, self._try, FLUSH_S, MAX_FLUSH_S)
        while self.num_pending and await self._try():
            pass
        if self.num_pending:
            lost = sum(used.requests for used in (*self._sums.values(), *self._batch.values()))
            log.error("the usage of %d requests is lost: the database is away", lost)

    def close(self) -> None:
        """Let `run` come to its end."""
        self._is_closing.set()

    async def flush(self) -> bool:
        """Write what there is; False when it has to be tried again."""
        if not self._batch:
            self._batch, self._sums = self._sums, {}
            self._number += 1
        if not self._batch:
            return True
        try:
            await asyncio.to_thread(self._add, self._writer, self._number, self._batch)
        except (CatalogUnavailable, CatalogConflict) as error:
            self.failures += 1
            log.warning("usage is not written yet, and kept: %s", error)
            return False
        except InvalidDetails as error:
            self.failures += 1
            log.error("the usage of %d sums is lost: %s", len(self._batch), error)
        self._batch = {}
        return True

    async def _try(self) -> bool:
        return await tried(self.flush)

    def _key(self, outcome: Outcome) -> UsageKey:
        who = outcome.principal
        model = outcome.saved_name or (self._base if outcome.model else "")
        day = time.strftime("%Y-%m-%d", time.gmtime())
        texts = (text[:MAX_USAGE_TEXT] for text in (who.tenant, who.key or "", model))
        return UsageKey(day, *texts)

    def _sum_of(self, key: UsageKey) -> Used:
        if key not in self._sums and len(self._sums) >= MAX_KEYS:
            key = UsageKey(key.day, OTHER, OTHER, OTHER)
        return self._sums.setdefault(key, Used())
