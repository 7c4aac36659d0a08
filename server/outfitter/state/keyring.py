"""Which keys are good, remembered for as long as that is known to be so.

Like the resolver's answers, what is remembered counts for one generation of the catalog, which is
confirmed at most half a second before a request: a key that is revoked anywhere stops within that.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from outfitter.control.keys import Holder, Token, admit
from outfitter.control.principal import Principal
from outfitter.errors import CatalogUnavailable
from outfitter.state.generation import Generation

MAX_KNOWN = 16_384
MAX_UNKNOWN = 1024
"""Of ids that nobody has; apart from the others, so that guessing drives out no good key."""
OUTAGE_S = 300.0
"""While the database is away, a key goes on for so long after it was last known to be good."""


@dataclass
class _Known:
    """What the database said at `generation`. confirmed: time.monotonic() when that last held."""

    generation: int
    holder: Holder | None
    confirmed: float


class Keyring:
    """Admits keys. find: asks the database, and may raise CatalogUnavailable. Thread-safe."""

    def __init__(self, find: Callable[[str], Holder | None], generation: Generation) -> None:
        self._find = find
        self._generation = generation
        self._lock = threading.Lock()
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._unknown: OrderedDict[str, _Known] = OrderedDict()
        self._tenants: OrderedDict[str, Holder] = OrderedDict()
        self._used: dict[str, int] = {}

    def remembered(self, token: Token) -> Principal | None:
        """The principal if it is known without waiting; else None. Raises ApiError (401, 403)."""
        generation = self._generation.fresh()
        if generation is None or (known := self._recall(token.id, generation)) is None:
            return None
        return self._admit(token, known.holder)

    def principal(self, token: Token) -> Principal:
        """On whose behalf a key is sent; may wait for the database.

        Raises ApiError (401, 403), and CatalogUnavailable for a key that was not known before the
        database went away, or not lately.
        """
        try:
            generation = self._generation.current()
            known = self._recall(token.id, generation) or self._ask(token.id, generation)
        except CatalogUnavailable:
            if (lasting := self._outlasting(token.id)) is None:
                raise
            known = lasting
        return self._admit(token, known.holder)

    def limits_of(self, tenant: str) -> Mapping[str, object]:
        """What the operator said of a tenant, as it was when a key of it was last read.

        Never waits: whoever was admitted a moment ago is known. Empty for a tenant without a key.
        """
        holder = self._tenants.get(tenant)
        return {} if holder is None else holder.limits

    def namespaces_of(self, tenant: str) -> tuple[str, ...]:
        """The namespaces that it owns; the same holds."""
        holder = self._tenants.get(tenant)
        return () if holder is None else tuple(sorted(holder.namespaces))

    def forget(self, id_: str) -> None:
        """A key was revoked here: it shall not outlast an outage."""
        with self._lock:
            self._known.pop(id_, None)

    def forget_tenant(self, tenant: str) -> None:
        """Its keys may do less now, or nothing: nor shall those that were remembered."""
        with self._lock:
            gone = [id_ for id_, known in self._known.items() if _tenant_of(known) == tenant]
            for id_ in gone:
                del self._known[id_]

    def take_used(self) -> dict[str, int]:
        """When each key was used since the last call: Unix time, to the minute."""
        with self._lock:
            used, self._used = self._used, {}
        return used

    def put_back(self, used: dict[str, int]) -> None:
        """What could not be written down."""
        with self._lock:
            self._used = {**used, **self._used}

    def __len__(self) -> int:
        return len(self._known) + len(self._unknown)

    def _admit(self, token: Token, holder: Holder | None) -> Principal:
        now = time.time()
        principal = admit(token, holder, now)
        with self._lock:
            self._used[token.id] = int(now) // 60 * 60
        return principal

    def _recall(self, id_: str, generation: int) -> _Known | None:
        with self._lock:
            for kept in (self._known, self._unknown):
                known = kept.get(id_)
                if known is not None and known.generation == generation:
                    known.confirmed = time.monotonic()
                    kept.move_to_end(id_)
                    return known
        return None

    def _ask(self, id_: str, generation: int) -> _Known:
        known = _Known(generation, self._find(id_), time.monotonic())
        with self._lock:
            self._known.pop(id_, None)
            self._unknown.pop(id_, None)
            kept, most = (
                (self._unknown, MAX_UNKNOWN) if known.holder is None else (self._known, MAX_KNOWN)
            )
            kept[id_] = known
            while len(kept) > most:
                kept.popitem(last=False)
            if known.holder is not None:
                self._remember_tenant(known.holder)
        return known

    def _remember_tenant(self, holder: Holder) -> None:
        """Under the lock."""
        self._tenants[holder.tenant] = holder
        self._tenants.move_to_end(holder.tenant)
        while len(self._tenants) > MAX_KNOWN:
            self._tenants.popitem(last=False)

    def _outlasting(self, id_: str) -> _Known | None:
        with self._lock:
            known = self._known.get(id_)
        if known is None or time.monotonic() - known.confirmed > OUTAGE_S:
            return None
        return known


def _tenant_of(known: _Known) -> str | None:
    return None if known.holder is None else known.holder.tenant
