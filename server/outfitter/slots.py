"""Slots for what takes disk and network for long: bounded, and bounded for each tenant."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass
class _Tenant:
    turns: asyncio.Semaphore
    num_users: int = 0


class Slots:
    """At most `most` are taken, and `each` by one tenant; others wait, its own first for it.

    So one tenant, however slow, leaves room for others.
    """

    def __init__(self, most: int, each: int) -> None:
        self._turns = asyncio.Semaphore(most)
        self._each = each
        self._tenants: dict[str, _Tenant] = {}

    @asynccontextmanager
    async def taken(self, tenant: str) -> AsyncIterator[None]:
        """Hold one while the context is open."""
        mine = self._tenants.setdefault(tenant, _Tenant(asyncio.Semaphore(self._each)))
        mine.num_users += 1
        try:
            async with mine.turns, self._turns:
                yield
        finally:
            mine.num_users -= 1
            if not mine.num_users:
                del self._tenants[tenant]

    def __len__(self) -> int:
        """How many tenants hold one or wait."""
        return len(self._tenants)
