"""One does the work, all who asked meanwhile get its outcome."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Work by key, among threads. Neither results nor errors are remembered."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._flights: dict[str, Future[T]] = {}

    def do(self, key: str, work: Callable[[], T]) -> T:
        """The result of `work()`, or of the same key's work under way; raises its error."""
        with self._lock:
            flight = self._flights.get(key)
            is_leader = flight is None
            if flight is None:
                flight = self._flights[key] = Future()
        if is_leader:
            self._lead(key, flight, work)
        return flight.result()

    def _lead(self, key: str, flight: "Future[T]", work: Callable[[], T]) -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 (it is raised by `result`)
            self._end(key)
            flight.set_exception(error)
        else:
            self._end(key)
            flight.set_result(result)

    def _end(self, key: str) -> None:
        """Before the outcome is told: who was told of a failure may try anew at once."""
        with self._lock:
            del self._flights[key]
