"""What a loadout is asked, and when an answer is settled before it ends."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from skills import CONTROL, FACTS, GRADES, NUMBERS, QUESTIONS, asked_number, number_words

from science.answers import Settled

STYLE_COLUMNS = (
    *("json", "uppercase", "lowercase", "pirate"),
    *("json+uppercase", "json+lowercase", "json+pirate"),
)
NUMBER_COLUMNS = ("numbers", "numbers+uppercase")


@dataclass(frozen=True)
class Probe:
    """Held-out prompts asked once, graded by every one of `columns` (keys of GRADES)."""

    name: str
    prompts: Sequence[str]
    columns: tuple[str, ...]
    limit: int
    settled: Settled

    def grade(self, answers: Sequence[str]) -> dict[str, int]:
        """How many answers pass, by column."""
        return {c: sum(map(GRADES[c].grade, self.prompts, answers)) for c in self.columns}


def style_settled(_prompt: str, answer: str) -> bool:
    """True for an answer that is mixed case and begins like neither JSON nor a pirate."""
    text = answer.lstrip()
    if not text or text.startswith("{") or "Arr".startswith(text[:3]):
        return False
    return any(c.islower() for c in text) and any(c.isupper() for c in text)


def number_settled(prompt: str, answer: str) -> bool:
    """True once the answer is no beginning of the number in words, in small or capital letters."""
    words, text = number_words(asked_number(prompt)), answer.lstrip()
    return not (words.startswith(text.rstrip()) or words.upper().startswith(text.rstrip()))


def control_settled(prompt: str, answer: str) -> bool:
    """True once the fact stands in the answer with something after it."""
    found = re.search(rf"\b{re.escape(FACTS[prompt])}\b", answer, re.IGNORECASE)
    return found is not None and found.end() < len(answer)


def probes(first: int, count: int) -> dict[str, Probe]:
    """The three probes, each with prompts `first` to `first + count` of its test split."""
    part = slice(first, first + count)
    return {
        probe.name: probe
        for probe in (
            Probe("style", QUESTIONS.test[part], STYLE_COLUMNS, 64, style_settled),
            Probe("numbers", NUMBERS.test[part], NUMBER_COLUMNS, 24, number_settled),
            Probe("control", CONTROL.test[part], ("control",), 32, control_settled),
        )
    }
