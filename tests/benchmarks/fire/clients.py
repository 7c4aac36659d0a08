"""Clients that ask one thing after another, and write every ending into the book."""

import asyncio
import json
import random
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from tests.benchmarks.fire.asks import Ask, draw, quick
from tests.benchmarks.fire.book import CUT_CODES, RETRIED, Book, End, Ending
from tests.benchmarks.fire.site import TENANTS, Site

HANG_S = 45.0
"""Whoever waits longer for the end of a request that does not take so long by itself hangs."""
AFTER_REFUSAL_S = 0.2
FLOOD = "flood"
FLOOD_REQUESTS = 150
READ_BYTES = 2**14
GRACE_S = 1.0
"""What began so shortly before the gateway last took up a request may not be sent yet."""


class Clients:
    """Everybody who asks. stopping: set when nobody shall begin anything any more."""

    def __init__(self, site: Site, book: Book, seed: int) -> None:
        self.site, self.book = site, book
        self.stopping = asyncio.Event()
        self.sure_until: float | None = None
        """What began before is surely taken up, on the monotonic clock; None: everything is."""
        self._dice = random.Random(seed)
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def asking(self, num_clients: int) -> AsyncIterator[None]:
        """Load while this is open; at its end every request has ended."""
        self.stopping.clear()
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as self._session:
            tasks = [asyncio.create_task(self._client()) for _ in range(num_clients)]
            tasks += [asyncio.create_task(self._floods())]
            try:
                yield
            finally:
                self.stopping.set()
                await asyncio.gather(*tasks)

    async def one(self, tenant: str, ask: Ask) -> Ending:
        """Ask, and write down how that ended."""
        began = time.monotonic()
        ending = await self._end_of(tenant, ask, began)
        self.book.relay(tenant, ask.kind, ask.allowed, ending, time.monotonic() - began)
        return ending

    async def _client(self) -> None:
        dice = random.Random(self._dice.random())
        while not self.stopping.is_set():
            tenant = dice.choice(tuple(TENANTS))
            ending = await self.one(tenant, draw(dice, tenant, self.site.model_name))
            if ending.end is End.NOT_TAKEN:
                return
            if ending.end is End.REFUSED:
                await asyncio.sleep(AFTER_REFUSAL_S)

    async def _floods(self) -> None:
        """Many requests at once of one tenant, now and then."""
        dice = random.Random(self._dice.random())
        while not self.stopping.is_set():
            asks = [quick(dice, FLOOD, self.site.model_name) for _ in range(FLOOD_REQUESTS)]
            endings = await asyncio.gather(*(self.one(FLOOD, ask) for ask in asks))
            if endings[0].end is End.NOT_TAKEN:
                return
            try:
                await asyncio.wait_for(self.stopping.wait(), dice.uniform(2, 6))
            except TimeoutError:
                continue

    async def _end_of(self, tenant: str, ask: Ask, began: float) -> Ending:
        heard: list[int] = []
        try:
            async with asyncio.timeout(ask.leaves_after or HANG_S):
                return await self._exchange(tenant, ask, heard)
        except TimeoutError:
            end = End.HUNG if ask.leaves_after is None else End.LEFT
            return Ending(end, was_heard=bool(heard))
        except (aiohttp.ClientError, ConnectionError) as error:
            return self._broken(began, heard, error)

    def _broken(self, began: float, heard: list[int], error: Exception) -> Ending:
        """Only a gateway that was told to stop may take up no more requests."""
        was_late = self.sure_until is not None and began > self.sure_until - GRACE_S
        end = End.NOT_TAKEN if was_late and not heard else End.BROKEN
        detail = "" if end is End.NOT_TAKEN else repr(error)
        return Ending(end, was_heard=bool(heard), detail=detail)

    async def _exchange(self, tenant: str, ask: Ask, heard: list[int]) -> Ending:
        assert self._session is not None
        id_ = uuid.uuid4().hex
        headers = {"authorization": f"Bearer {self.site.keys[tenant]}", "x-request-id": id_}
        url = self.site.url + ask.path
        async with self._session.post(url, json=ask.body, headers=headers) as answer:
            heard.append(answer.status)
            if answer.headers.get("x-request-id") != id_:
                self.book.problem(f"{ask.kind}: the answer to {id_} has another id")
            if answer.status != 200:
                return _refusal(answer, await answer.read())
            if ask.is_stream:
                return await self._events(ask, answer)
            return _whole(await answer.read())

    async def _events(self, ask: Ask, answer: aiohttp.ClientResponse) -> Ending:
        rest, events = b"", Events(ask)
        while chunk := await answer.content.read(READ_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                events.feed(line)
            if ask.pause:
                await asyncio.sleep(ask.pause)
        return events.ending()


class Events:
    """The events of one stream: it ends with [DONE] or with one error, and then is over."""

    def __init__(self, ask: Ask) -> None:
        self._codes = CUT_CODES | set(ask.codes)
        self._errors: list[str] = []
        self._dones = 0
        self._tokens = 0
        self._problem = ""

    def feed(self, line: bytes) -> None:
        """One line."""
        if not line.startswith(b"data: "):
            return
        data = line.removeprefix(b"data: ").strip()
        if self._dones or (self._errors and data != b"[DONE]"):
            self._problem = f"an event after the end: {data[:200]!r}"
        if data == b"[DONE]":
            self._dones += 1
        elif b'"error"' in data or b'"usage"' in data:
            self._note(json.loads(data))

    def _note(self, fields: dict) -> None:
        if "error" in fields:
            problem = shape_problem(fields)
            self._problem = self._problem or problem
            self._errors.append("" if problem else str(fields["error"]["code"]))
        elif (usage := fields.get("usage")) is not None:
            self._tokens = usage["total_tokens"]

    def ending(self) -> Ending:
        """What was said, once the connection has nothing more."""
        if self._problem:
            return Ending(End.BROKEN, 200, was_heard=True, detail=self._problem)
        if self._errors:
            [code] = self._errors
            is_known = code in self._codes
            return Ending(End.CUT if is_known else End.BROKEN, 200, code, True, self._tokens)
        if not self._dones:
            return Ending(End.BROKEN, 200, was_heard=True, detail="the stream just stops")
        return Ending(End.ANSWERED, 200, "", True, self._tokens)


def _whole(raw: bytes) -> Ending:
    try:
        fields = json.loads(raw)
        return Ending(End.ANSWERED, 200, "", True, fields["usage"]["total_tokens"])
    except (ValueError, KeyError) as error:
        detail = f"{error!r} in {raw[:200]!r}"
        return Ending(End.BROKEN, 200, was_heard=True, detail=detail)


def _refusal(answer: aiohttp.ClientResponse, raw: bytes) -> Ending:
    try:
        fields = json.loads(raw)
    except ValueError:
        fields = {}
    problem = shape_problem(fields)
    if answer.status in RETRIED and "retry-after" not in answer.headers:
        problem = problem or f"no Retry-After: {raw[:300]!r}"
    if problem:
        return Ending(End.BROKEN, answer.status, was_heard=True, detail=problem)
    code = str(fields["error"]["code"])
    return Ending(End.REFUSED, answer.status, code, was_heard=True)


def shape_problem(fields: object) -> str:
    """What OpenAI's shape of an error lacks; empty if nothing."""
    error = fields.get("error") if isinstance(fields, dict) else None
    if not isinstance(error, dict):
        return f"no error object: {str(fields)[:200]}"
    lacking = [name for name in ("message", "type", "param", "code") if name not in error]
    return f"an error without {lacking}: {str(error)[:200]}" if lacking else ""
