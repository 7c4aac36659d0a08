"""Publishes vectors and saves loadouts while everything is killed; remembers what was promised."""

import asyncio
import random
import time
from collections import Counter

import aiohttp

from tests.benchmarks.fire.book import RETRIED, Book, End, Ending
from tests.benchmarks.fire.clients import HANG_S, shape_problem
from tests.benchmarks.fire.site import Site

TENANT = "free"
NUM_NAMES = 5
FIRST_SEED = 1000
"""Of the vectors that are published under fire."""


class Publisher:
    """One client that publishes again and again.

    promised: the digest of each version that was acknowledged. saved: acknowledged by action, as
    the trail names them.
    """

    def __init__(self, site: Site, book: Book, seed: int) -> None:
        self._site, self._book = site, book
        self._dice = random.Random(seed)
        self._made = 0
        self.promised: dict[str, str] = {}
        self.saved: Counter[str] = Counter()

    async def run(self, stopping: asyncio.Event) -> None:
        """Until told to stop."""
        headers = {"authorization": f"Bearer {self._site.keys[TENANT]}"}
        timeout = aiohttp.ClientTimeout(total=HANG_S)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
            while not stopping.is_set():
                await (self._publish if self._dice.random() < 0.5 else self._save)(session)
                await asyncio.sleep(self._dice.uniform(0.2, 1.0))

    async def _publish(self, session: aiohttp.ClientSession) -> None:
        self._made += 1
        path = await asyncio.to_thread(self._site.vector, FIRST_SEED + self._made)
        raw = path.read_bytes()
        url = f"{self._site.url}/v1/task_vectors?name={TENANT}/new{self._made % NUM_NAMES}"
        fields = await self._send(session, "task_vector.publish", url, data=raw)
        if fields:
            self.promised[f"{fields['name']}@{fields['version']}"] = fields["digest"]

    async def _save(self, session: aiohttp.ClientSession) -> None:
        """From then on, `free/bot` is another mix."""
        mix = {f"{TENANT}/v{k}": round(self._dice.uniform(-1, 1), 3) for k in range(2)}
        body = {"name": f"{TENANT}/bot", "task_vectors": mix}
        await self._send(session, "loadout.save", f"{self._site.url}/v1/loadouts", json=body)

    async def _send(
        self, session: aiohttp.ClientSession, action: str, url: str, **options: object
    ) -> dict:
        """The answer's fields if it was done, else none."""
        began, fields = time.monotonic(), {}
        try:
            async with session.post(url, **options) as answer:  # type: ignore[arg-type]
                fields = await answer.json()
                ending = _ending(answer, fields)
        except TimeoutError:
            ending = Ending(End.HUNG)
        except aiohttp.ClientError as error:
            ending = Ending(End.BROKEN, detail=repr(error))
        self._book.publish(TENANT, action, ending, time.monotonic() - began)
        if ending.end is not End.ANSWERED:
            return {}
        self.saved[action] += 1
        return fields


def _ending(answer: aiohttp.ClientResponse, fields: dict) -> Ending:
    if answer.status == 201:
        return Ending(End.ANSWERED, 201, was_heard=True)
    problem = shape_problem(fields)
    if answer.status in RETRIED and "retry-after" not in answer.headers:
        problem = problem or "no Retry-After"
    if problem:
        return Ending(End.BROKEN, answer.status, was_heard=True, detail=problem)
    return Ending(End.REFUSED, answer.status, str(fields["error"]["code"]), was_heard=True)
