"""The journal of a search: every batch and every score as a line of JSON, so that it can go on.

The first line is the question; a journal answers no other. A line that was cut off by a crash is
the last one, and is dropped. One process writes a journal at a time.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from outfitter.config import InvalidConfig
from outfitter.tuning.space import Candidate
from outfitter.tuning.stage import Batches

FORMAT = 1
MAX_SHOWN = 120


class Journal:
    """A file that is open for one search; a context manager. Raises InvalidConfig, OSError."""

    def __init__(self, path: Path, question: Mapping[str, Any]) -> None:
        self.path = path
        self.scores: dict[str, dict[int, float]] = {}
        """Of each candidate's key, by the prompt's position in the file."""
        self.failed: dict[str, str] = {}
        """Why a candidate has no scores, by its key."""
        self.seconds = 0.0
        """Spent on answers by earlier runs and this one."""
        self._batches: dict[str, Batches] = {}
        self._file = path.open("a+b")
        try:
            self._lock()
            self._read(json.loads(json.dumps(question)))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def num_scores(self) -> int:
        """Answers that are known."""
        return sum(map(len, self.scores.values()))

    def batches(self, stage: str) -> Batches:
        """What a stage tried, in order; grows with `begin`."""
        return self._batches.setdefault(stage, [])

    def begin(self, stage: str, batch: list[Candidate]) -> None:
        """Note what a stage tries next."""
        self._write({"stage": stage, "batch": [candidate.to_json() for candidate in batch]})
        self.batches(stage).append(batch)
        self.sync()

    def score(self, candidate: Candidate, prompt: int, score: float) -> None:
        """Note one graded answer."""
        self._write({"candidate": candidate.key, "prompt": prompt, "score": score})
        self.scores.setdefault(candidate.key, {})[prompt] = score

    def fail(self, candidate: Candidate, why: str) -> None:
        """Note that a candidate cannot be answered: it has no score, not a score of 0."""
        self._write({"candidate": candidate.key, "failed": why})
        self.failed[candidate.key] = why

    def spend(self, seconds: float) -> None:
        """Note time that answers took."""
        self._write({"seconds": round(seconds, 3)})
        self.seconds += seconds

    def sync(self) -> None:
        """Until here nothing is lost by a power cut."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InvalidConfig(
                f"another run writes the journal {self.path}; name another with --journal"
            ) from error

    def _write(self, fields: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(fields, separators=(",", ":")).encode() + b"\n")
        self._file.flush()

    def _read(self, question: Mapping[str, Any]) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._file.truncate(whole)
        lines = content[:whole].splitlines()
        if not lines:
            self._write({"format": FORMAT, "question": question})
            self.sync()
            return
        try:
            first = json.loads(lines[0])
            kept, written = first["question"], first["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidConfig(
                f"{self.path} is no journal of a search; name another with --journal"
            ) from error
        if written != FORMAT:
            raise InvalidConfig(f"{self.path} has format {written!r}; this version reads {FORMAT}")
        _check_same(self.path, kept, question)
        for number, line in enumerate(lines[1:], 2):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise InvalidConfig(f"{self.path}:{number} cannot be read: {error!r}") from error

    def _take(self, fields: dict[str, Any]) -> None:
        if "batch" in fields:
            batch = [Candidate.from_json(one) for one in fields["batch"]]
            self.batches(fields["stage"]).append(batch)
        elif "score" in fields:
            scores = self.scores.setdefault(fields["candidate"], {})
            scores[int(fields["prompt"])] = float(fields["score"])
        elif "failed" in fields:
            self.failed[fields["candidate"]] = str(fields["failed"])
        else:
            self.seconds += float(fields["seconds"])


def _check_same(path: Path, kept: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    for key in [*asked, *kept]:
        if kept.get(key) != asked.get(key):
            there, here = (json.dumps(one.get(key))[:MAX_SHOWN] for one in (kept, asked))
            raise InvalidConfig(
                f"the journal {path} answers another question: {key} is {there} there and {here}"
                " now; ask as before, or name another with --journal"
            )
