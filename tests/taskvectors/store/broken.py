"""A tier that is broken in any way that a tier can be."""

import threading
import time

from taskvectors.errors import TierUnavailable, VectorNotFound
from taskvectors.store.tier import Progress, TierStats

FAULTS = ("wrong", "truncated", "longer", "huge", "vanishing", "away", "away midway", "full")


class BrokenTier:
    """Files in a dict; `fault` says what is wrong with all of them, None that nothing is.

    gate: reads wait for it. fills, puts: the digests that were asked for.
    """

    def __init__(self, name: str, fault: str | None = None) -> None:
        self.name = name
        self.fault = fault
        self.files: dict[str, bytes] = {}
        self.fills: list[str] = []
        self.puts: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def size(self, digest: str) -> int | None:
        self._answer()
        if self.fault == "huge":
            return 1 << 60
        data = self.files.get(digest)
        change = {"truncated": -1, "longer": 1}.get(str(self.fault), 0)
        return None if data is None else max(0, len(data) + change)

    def fill(self, digest: str, buffer: memoryview, progress: Progress) -> None:
        self.fills.append(digest)
        assert self.gate.wait(30)
        self._answer()
        if self.fault == "vanishing":
            raise VectorNotFound("gone")
        data = bytearray(self.files[digest].ljust(buffer.nbytes)[: buffer.nbytes])
        if self.fault == "wrong":
            data[-1] ^= 1
        half = len(data) // 2
        buffer[:half] = data[:half]
        progress(half)
        if self.fault == "away midway":
            raise TierUnavailable("the connection broke")
        time.sleep(0)
        buffer[half:] = data[half:]
        progress(len(data))

    def head(self, digest: str, nbytes: int) -> bytes | None:
        self._answer()
        data = self.files.get(digest)
        if data is not None and self.fault == "wrong":
            return (b"!" * len(data))[:nbytes]
        return None if data is None else data[:nbytes]

    def put(self, digest: str, data: memoryview) -> bool:
        self._answer()
        self.puts.append(digest)
        if self.fault == "full":
            return False
        self.files[digest] = bytes(data)
        return True

    def drop(self, digest: str) -> None:
        self._answer()
        self.files.pop(digest, None)

    def stats(self) -> TierStats:
        return TierStats()

    def _answer(self) -> None:
        if self.fault == "away":
            raise TierUnavailable(f"{self.name} does not answer")
