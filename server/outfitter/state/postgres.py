"""Connections to PostgreSQL whose every wait is bounded, also when the server only hangs."""

from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen

T = TypeVar("T")
_GRACE_S = 5.0
"""The server is given so much longer to say itself that time is up."""


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that is closed when an answer takes too long."""

    answer_s = 30.0

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Raises OperationalError instead of waiting on."""
        try:
            return super().wait(gen, interval, self.answer_s if timeout is None else timeout)
        except psycopg.errors._WaitTimeout as error:
            if timeout is not None:
                raise
            self.pgconn.finish()
            raise psycopg.OperationalError(f"no answer in {self.answer_s:g} s") from error


def connect(lock_s: float, answer_s: float, *args: Any, **options: Any) -> BoundedConnection:
    """A connection whose statements give up after `answer_s` seconds, `lock_s` of them on locks."""
    connection = BoundedConnection.connect(*args, **options)
    connection.answer_s = answer_s + _GRACE_S
    for setting, seconds in (("lock_timeout", lock_s), ("statement_timeout", answer_s)):
        connection.execute(
            "SELECT set_config(%s, %s, false)", (setting, f"{round(seconds * 1000)}ms")
        )
    connection.commit()
    return connection
