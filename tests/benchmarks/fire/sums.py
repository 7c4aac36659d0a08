"""What the gateway wrote down, against what the clients know."""

import datetime
from collections import Counter
from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, select

from outfitter.state.models import AuditRow, LoadoutUseRow
from outfitter.state.usage import UsageQuery, UsageTable
from outfitter.vectors import Vectors
from taskvectors.errors import VectorNotFound
from taskvectors.spec import Reference
from tests.benchmarks.fire.book import Book
from tests.benchmarks.fire.site import NUM_VECTORS, TENANTS, Site
from tests.outfitter.harness import opened

NOT_NOTED = "not in the trail: "
"""What the log says of a change that is made and could not be noted."""
PREPARED = {"task_vector.publish": NUM_VECTORS, "loadout.save": 1}
"""What each tenant published before the fire, by action."""


def written(site: Site) -> dict[str, Any]:
    """Sums of the tables, by tenant and by action: of the gateway that has ended."""
    today = datetime.datetime.now(datetime.UTC).date()
    days = UsageQuery(str(today - datetime.timedelta(days=1)), str(today), ("tenant",))
    with opened(site.config) as vectors:
        database = vectors.catalog.database
        usage = {row.pop("tenant"): row for row in UsageTable(database).find(days)}
        with database.reading() as session:
            uses = select(LoadoutUseRow.tenant, func.sum(LoadoutUseRow.count))
            actions = select(AuditRow.action, func.count())
            used = session.execute(uses.group_by(LoadoutUseRow.tenant))
            changed = session.execute(actions.group_by(AuditRow.action))
            return {
                "usage": usage,
                "loadout_use": {tenant: int(count) for tenant, count in used},
                "audit": {action: int(count) for action, count in changed},
            }


def missing(site: Site, promised: Mapping[str, str]) -> list[str]:
    """The versions that were acknowledged with a digest, and do not have it now."""
    with opened(site.config) as vectors:
        return [
            reference
            for reference, digest in promised.items()
            if _digest_of(vectors, reference) != digest.removeprefix("sha256:")
        ]


def _digest_of(vectors: Vectors, reference: str) -> str | None:
    try:
        return vectors.version(Reference.parse(reference)).digest
    except VectorNotFound:
        return None


def check_usage(book: Book, found: Mapping[str, Any]) -> None:
    """Every request that was heard of is counted once, the others at most once."""
    for tenant in TENANTS:
        counted = found["usage"].get(tenant, {}).get("requests", 0)
        least, most = book.relayed[tenant], book.relayed[tenant] + book.unheard[tenant]
        if not least <= counted <= most:
            book.problem(f"usage of {tenant} counts {counted} requests, not {least} to {most}")
        used = found["loadout_use"].get(tenant, 0)
        if not book.served[tenant] <= used <= counted:
            between = f"{book.served[tenant]} to {counted}"
            book.problem(f"the trail of loadouts of {tenant} counts {used}, not {between}")
        usage = found["usage"].get(tenant, {})
        tokens = usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0)
        if tokens < book.tokens[tenant]:
            told = book.tokens[tenant]
            book.problem(f"usage of {tenant} counts {tokens} tokens, and clients {told}")


def check_audit(book: Book, found: Mapping[str, Any], saved: Counter[str], log: str) -> None:
    """Every acknowledged change is in the trail, or the log says that it could not be noted."""
    for action, count in PREPARED.items():
        done = saved[action] + count * len(TENANTS)
        lost = log.count(f"{NOT_NOTED}{action} ")
        noted = found["audit"].get(action, 0)
        if not done - lost <= noted <= done:
            book.problem(f"the trail has {noted} {action}, not {done} less at most {lost}")


def check_quotas(book: Book, stats: Mapping[str, Any], minutes: float) -> None:
    """Nobody was admitted beyond its limits, though Valkey forgot its counts with each kill."""
    tenants = stats["quotas"]["tenants"]
    for tenant, limits in TENANTS.items():
        limit = limits.get("requests_per_minute")
        most = None if limit is None else int(str(limit)) * (int(minutes) + 2)
        admitted = tenants.get(tenant, {}).get("admitted", 0)
        if most is not None and admitted > most:
            book.problem(f"{admitted} requests of {tenant} were admitted, not at most {most}")
        if admitted > book.relayed[tenant] + book.unheard[tenant]:
            book.problem(f"{admitted} requests of {tenant} were admitted, and fewer were sent")


def admitted(stats: Mapping[str, Any]) -> int:
    """Requests that quotas let through, of all tenants."""
    return sum(of["admitted"] for of in stats["quotas"]["tenants"].values())


def check_charged(book: Book, stats: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Of a gateway that has been calm: quotas charged the tokens that the usage counts, and each
    request that they admitted used a loadout once."""
    for tenant, of in stats["quotas"]["tenants"].items():
        row, used = found["usage"].get(tenant, {}), found["loadout_use"].get(tenant, 0)
        if of["admitted"] != used:
            let = of["admitted"]
            book.problem(f"quotas of {tenant} admitted {let}, its trail of loadouts has {used}")
        tokens = row.get("prompt_tokens", 0) + row.get("completion_tokens", 0)
        if of["tokens"] != tokens:
            book.problem(f"quotas of {tenant} charged {of['tokens']} tokens, usage has {tokens}")
