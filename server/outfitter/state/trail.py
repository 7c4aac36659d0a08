"""Writes down which key used which loadout, and when it was used: each batch of it once."""

import logging
import threading
import uuid

from outfitter.errors import CatalogConflict, CatalogUnavailable, InvalidDetails
from outfitter.state import keys
from outfitter.state.database import Database
from outfitter.state.keyring import Keyring
from outfitter.state.usage import is_next
from outfitter.state.uses import Counts, UseLog, write

log = logging.getLogger(__name__)


class Trail:
    """Takes what `uses` and `keyring` have counted to the database.

    A batch that may or may not have been written is tried again under its number, so it counts
    once. Thread-safe: whoever calls while another writes waits for it.
    """

    def __init__(self, database: Database, uses: UseLog, keyring: Keyring) -> None:
        self._database = database
        self._uses, self._keyring = uses, keyring
        self._lock = threading.Lock()
        self._writer = uuid.uuid4().hex
        self._number = 0
        self._batch: Counts = {}

    def flush(self) -> None:
        """Write what there is; what cannot be written now is kept for the next call."""
        with self._lock:
            if self._batch and not self._write():
                return
            self._batch = self._uses.take()
            self._number += 1
            self._write()

    def _write(self) -> bool:
        """Under the lock; False when it has to be tried again."""
        used = self._keyring.take_used()
        if not self._batch and not used:
            return True
        try:
            with self._database.changing() as session:
                if self._batch and is_next(session, self._writer, self._number):
                    write(session, self._batch)
                for id_, at in sorted(used.items()):
                    keys.used(session, id_, at)
        except (CatalogUnavailable, CatalogConflict) as error:
            self._keyring.put_back(used)
            log.warning("the trail of loadouts waits for the database: %s", error)
            return False
        except InvalidDetails as error:  # no database holds it
            lost = sum(count for count, _, _ in self._batch.values())
            log.error("%d uses of loadouts are lost: %s", lost, error)
        self._batch = {}
        return True
