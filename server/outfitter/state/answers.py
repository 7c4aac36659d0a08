"""Answers of the catalog, remembered for the generation that they were given in."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from outfitter.control.rights import Viewer
from outfitter.waiting import check_may_wait
from taskvectors.errors import VectorNotFound
from taskvectors.spec import Reference

MAX_ANSWERS = 4096
MAX_BYTES = 64 << 20
"""For the texts of remembered answers, such as cards."""

T = TypeVar("T")
Question = tuple[Reference, Viewer | None]
"""What is asked, and who asks: what one may see, another may not."""


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What the catalog said at `generation`, or after it: a value, or why there is none."""

    generation: int
    nbytes: int
    value: T | None
    problem: str = ""
    kind: type[VectorNotFound] = VectorNotFound
    """Of the error."""

    def get(self) -> T:
        """The value; raises VectorNotFound."""
        if self.value is None:
            raise self.kind(self.problem)
        return self.value


class Answers(Generic[T]):
    """One kind of answers: those asked for last, within MAX_ANSWERS and MAX_BYTES.

    ask: the question, which may raise VectorNotFound. weigh: bytes of a value's texts. Every method
    may be called from many threads.
    """

    def __init__(self, ask: Callable[[Question], T], weigh: Callable[[T], int]) -> None:
        self._question = ask
        self._weigh = weigh
        self._lock = threading.Lock()
        self._answers: OrderedDict[Question, Answer[T]] = OrderedDict()
        self._nbytes = 0
        self._asking: dict[tuple[Question, int], Future[Answer[T]]] = {}

    def find(self, question: Question, generation: int) -> Answer[T] | None:
        """What is remembered of exactly this generation."""
        with self._lock:
            answer = self._answers.get(question)
            if answer is None or answer.generation != generation:
                return None
            self._answers.move_to_end(question)
            return answer

    def ask(self, question: Question, generation: int) -> Answer[T]:
        """Ask the catalog; callers who know the same generation share one question."""
        check_may_wait()
        key = (question, generation)
        with self._lock:
            future = self._asking.get(key)
            is_mine = future is None
            if future is None:
                future = self._asking[key] = Future()
        if is_mine:
            try:
                future.set_result(self._ask(question, generation))
            except BaseException as error:  # noqa: BLE001
                future.set_exception(error)
            finally:
                with self._lock:
                    del self._asking[key]
        return future.result()

    def _ask(self, question: Question, generation: int) -> Answer[T]:
        try:
            value = self._question(question)
            answer = Answer(generation, self._weigh(value), value)
        except VectorNotFound as error:
            answer = Answer[T](generation, len(str(error)), None, str(error), type(error))
        self._keep(question, answer)
        return answer

    def _keep(self, question: Question, answer: Answer[T]) -> None:
        """Remember an answer, instead of the one that is there."""
        with self._lock:
            old = self._answers.get(question)
            self._nbytes += answer.nbytes - (old.nbytes if old is not None else 0)
            self._answers[question] = answer
            self._answers.move_to_end(question)
            while len(self._answers) > MAX_ANSWERS or self._nbytes > MAX_BYTES:
                _, gone = self._answers.popitem(last=False)
                self._nbytes -= gone.nbytes
