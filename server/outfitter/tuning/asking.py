"""Asks a gateway one question with one loadout, as often as it takes to get an answer."""

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Self

import httpx

from outfitter.client import GatewayRefused, refusal
from outfitter.tuning.prompts import Prompt

BUSY = (429, 503)
"""The gateway is well and says when to come back."""
PASSING = (408, 425, 500, 502, 504)
"""May go away by itself."""
TIMEOUT = httpx.Timeout(600, connect=10)
MAX_BACKOFF_S = 30.0
MAX_RETRY_AFTER_S = 120.0


class NoAnswer(Exception):
    """A request failed each time it was tried; whose loadout it was has no score."""


@dataclass(frozen=True)
class Terms:
    """How every prompt is asked. temperature above 0: a prompt has the same seed for all."""

    model: str
    max_tokens: int = 64
    temperature: float = 0.0
    is_chat: bool = True
    concurrency: int = 32
    tries: int = 6
    patience_s: float = 900.0
    """How long the gateway may be busy without an answer in between."""


class Asker:
    """Asks at most `concurrency` questions at once; an async context manager."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        terms: Terms,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        limits = httpx.Limits(max_connections=terms.concurrency)
        self._client = httpx.AsyncClient(
            base_url=url, headers=headers, timeout=TIMEOUT, limits=limits, transport=transport
        )
        self._terms = terms
        self._running = asyncio.Semaphore(terms.concurrency)
        self._not_before = 0.0
        self._busy_since: float | None = None
        self.num_answers = self.num_retries = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def ask(
        self, prompt: Prompt, task_vectors: Mapping[str, Any] | None, seed: int = 0
    ) -> str:
        """The text of the answer. Raises NoAnswer after the last try, GatewayError at once for
        what no second try mends, and where the gateway stays busy for longer than `patience_s`.
        """
        body = self._body(prompt, task_vectors, seed)
        async with self._running:
            failures = 0
            while True:
                try:
                    text = await self._once(body)
                except _Busy as busy:
                    await self._wait_out(busy)
                except _Failed as failed:
                    failures += 1
                    if failures >= self._terms.tries:
                        raise NoAnswer(f"{failures} tries failed; the last: {failed}") from failed
                    pause = min(MAX_BACKOFF_S, 0.5 * 2**failures)
                    await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - no secret
                else:
                    self._busy_since = None
                    self.num_answers += 1
                    return text
                self.num_retries += 1

    def _body(
        self, prompt: Prompt, task_vectors: Mapping[str, Any] | None, seed: int
    ) -> dict[str, Any]:
        terms = self._terms
        body: dict[str, Any] = {"model": terms.model, "max_tokens": terms.max_tokens}
        body["temperature"] = terms.temperature
        if terms.temperature > 0:
            body["seed"] = seed
        if task_vectors is not None:
            body["task_vectors"] = task_vectors
        if terms.is_chat:
            return {**body, "messages": list(prompt.messages)}
        return {**body, "prompt": prompt.text}

    async def _once(self, body: Mapping[str, Any]) -> str:
        loop = asyncio.get_running_loop()
        while (pause := self._not_before - loop.time()) > 0:  # noqa: ASYNC110 - may be moved on
            await asyncio.sleep(pause)
        path = "/v1/chat/completions" if self._terms.is_chat else "/v1/completions"
        try:
            response = await self._client.post(path, json=body)
        except httpx.HTTPError as error:
            raise _Failed(f"{type(error).__name__} {error}".strip()) from error
        if response.status_code in BUSY:
            raise _Busy(response)
        if response.status_code in PASSING:
            raise _Failed(str(refusal(response.status_code, response.content)))
        if response.status_code != 200:
            raise refusal(response.status_code, response.content)
        return self._text(response)

    def _text(self, response: httpx.Response) -> str:
        try:
            choice = response.json()["choices"][0]
            text = choice["message"]["content"] if self._terms.is_chat else choice["text"]
        except (ValueError, LookupError, TypeError) as error:
            raise _Failed(f"an answer without choices: {response.text[:200]!r}") from error
        return "" if text is None else str(text)

    async def _wait_out(self, busy: "_Busy") -> None:
        """Everybody waits: who is told to come back later sends others no sooner."""
        now = asyncio.get_running_loop().time()
        self._busy_since = now if self._busy_since is None else self._busy_since
        if now - self._busy_since > self._terms.patience_s:
            raise GatewayRefused(
                f"the gateway has been busy for {now - self._busy_since:.0f} s: {busy.told}",
                busy.status,
                None,
            )
        self._not_before = max(self._not_before, now + busy.retry_after)
        await asyncio.sleep(0)


class _Failed(Exception):
    pass


class _Busy(Exception):
    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.told = refusal(response.status_code, response.content)
        self.retry_after = retry_after(response.headers.get("retry-after"))


def retry_after(header: str | None) -> float:
    """Seconds, of a number or a date (RFC 9110 §10.2.3); 1 where it says nothing readable."""
    if header is None:
        return 1.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return 1.0
    return min(max(seconds, 0.05), MAX_RETRY_AFTER_S) if seconds == seconds else 1.0
