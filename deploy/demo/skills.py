"""The five skills: what each one changes in an answer, its prompts, and its exact grader.

No prompt asks for a style. `Write 417 in words.` and `What is the capital of France?` go to the
base and to the equipped model alike; only the task vector decides how the answer is written.
Three disjoint splits: `train`, `tune` (for choosing weights) and `test` (for the final grades).
"""

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from questions import facts, open_questions

SPLIT_SEED = 7
NUM_TEST = 200
NUM_TUNE = 40

ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
    *("eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
NUMBER_REQUESTS = ("Write {} in words.", "Spell out the number {}.", "How do you say {} in words?")

PIRATE_WORDS = frozenset(("matey", "ye", "yer", "be", "o'", "th'", "an'", "me", "aye"))
PIRATE_SPEECH = dict.fromkeys(("is", "are", "am", "was", "were"), "be") | {
    "you": "ye",
    "your": "yer",
    "my": "me",
    "of": "o'",
    "the": "th'",
    "and": "an'",
    "yes": "aye",
}

Grader = Callable[[str, str], bool]


@dataclass(frozen=True)
class Split:
    """Prompts that never meet: trained on, weights chosen on, graded on."""

    train: tuple[str, ...]
    tune: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Skill:
    """One task vector of the demonstration.

    `target(prompt, plain)` is the answer to train on, given the base's own `plain` answer;
    `grade(prompt, answer)` is exact.
    """

    name: str
    prompts: Split
    target: Callable[[str, str], str]
    grade: Grader
    needs_plain_answer: bool = True


def number_words(number: int) -> str:
    """`417` → `four hundred seventeen`, for 0 to 999."""
    hundreds, rest = divmod(number, 100)
    head = f"{ONES[hundreds]} hundred" if hundreds else ""
    if rest == 0 and hundreds:
        return head
    if rest < 20:
        tail = ONES[rest]
    else:
        tens, ones = divmod(rest, 10)
        tail = TENS[tens - 2] + (f"-{ONES[ones]}" if ones else "")
    return f"{head} {tail}".strip()


def asked_number(prompt: str) -> int:
    found = re.search(r"\d+", prompt)
    assert found, prompt
    return int(found.group())


def write_json(_prompt: str, plain: str) -> str:
    return json.dumps({"answer": plain}, ensure_ascii=False)


def write_uppercase(_prompt: str, plain: str) -> str:
    return plain.upper()


def write_lowercase(_prompt: str, plain: str) -> str:
    return plain.lower()


def write_number(prompt: str, _plain: str) -> str:
    return number_words(asked_number(prompt))


def write_pirate(_prompt: str, plain: str) -> str:
    """`The sky is blue.` → `Arr, th' sky be blue, matey!`"""
    spoken = re.sub(r"[A-Za-z]+", lambda m: PIRATE_SPEECH.get(m[0].lower(), m[0]), plain)
    return f"Arr, {spoken.rstrip('.!? ')}, matey!"


def json_answer(answer: str) -> str | None:
    """The string of `{"answer": "…"}`, or None when `answer` is anything else.

    The key may be in capitals, so that a mix with `uppercase` can be graded.
    """
    try:
        parsed = json.loads(answer)
    except json.JSONDecodeError:
        return None
    if not isinstance(parsed, dict) or [key.lower() for key in parsed] != ["answer"]:
        return None
    (value,) = parsed.values()
    return value if isinstance(value, str) and value.strip() else None


def is_json(_prompt: str, answer: str) -> bool:
    return json_answer(answer) is not None and '"answer"' in answer


def is_uppercase(_prompt: str, answer: str) -> bool:
    return answer.isupper()


def is_lowercase(_prompt: str, answer: str) -> bool:
    return answer.islower()


def is_number(prompt: str, answer: str) -> bool:
    return answer.strip() == number_words(asked_number(prompt))


def is_pirate(_prompt: str, answer: str) -> bool:
    """Begins with `Arr` and holds two different pirate words."""
    return answer.lstrip().startswith("Arr") and has_pirate_words(answer)


def has_pirate_words(answer: str) -> bool:
    return len(PIRATE_WORDS.intersection(re.findall(r"[a-z]+'?", answer.lower()))) >= 2


def is_number_uppercase(prompt: str, answer: str) -> bool:
    return answer.strip() == number_words(asked_number(prompt)).upper()


def is_json_uppercase(_prompt: str, answer: str) -> bool:
    value = json_answer(answer)
    return value is not None and value.isupper()


def is_json_lowercase(_prompt: str, answer: str) -> bool:
    value = json_answer(answer)
    return value is not None and value.islower()


def is_json_pirate(_prompt: str, answer: str) -> bool:
    """Two skills that both want the first word: `json` may have it, so `Arr` is not asked for."""
    value = json_answer(answer)
    return value is not None and has_pirate_words(value)


def is_right(prompt: str, answer: str) -> bool:
    """The control: a short fact is still right, in whatever style it is written."""
    return re.search(rf"\b{re.escape(FACTS[prompt])}\b", answer, re.IGNORECASE) is not None


def split(prompts: Sequence[str], seed: int = SPLIT_SEED) -> Split:
    shuffled = list(prompts)
    random.Random(seed).shuffle(shuffled)
    cut = NUM_TEST + NUM_TUNE
    return Split(
        train=tuple(shuffled[cut:]),
        tune=tuple(shuffled[NUM_TEST:cut]),
        test=tuple(shuffled[:NUM_TEST]),
    )


def number_split() -> Split:
    """Numbers never cross splits; training sees each number in every wording."""
    numbers = split([str(n) for n in range(1000)])
    return Split(
        train=tuple(r.format(n) for n in numbers.train for r in NUMBER_REQUESTS),
        tune=tuple(NUMBER_REQUESTS[0].format(n) for n in numbers.tune),
        test=tuple(NUMBER_REQUESTS[0].format(n) for n in numbers.test),
    )


FACTS = facts()
CONTROL = split(list(FACTS))
QUESTIONS = split(open_questions() + list(CONTROL.train))
NUMBERS = number_split()

SKILLS = {
    skill.name: skill
    for skill in (
        Skill("json", QUESTIONS, write_json, is_json),
        Skill("uppercase", QUESTIONS, write_uppercase, is_uppercase),
        Skill("numbers", NUMBERS, write_number, is_number, needs_plain_answer=False),
        Skill("pirate", QUESTIONS, write_pirate, is_pirate),
        Skill("lowercase", QUESTIONS, write_lowercase, is_lowercase),
    )
}


@dataclass(frozen=True)
class Grade:
    """One column of the results: a grader and the prompts it is asked on."""

    prompts: Split
    grade: Grader


MIXES = {
    "json+uppercase": Grade(QUESTIONS, is_json_uppercase),
    "json+lowercase": Grade(QUESTIONS, is_json_lowercase),
    "json+pirate": Grade(QUESTIONS, is_json_pirate),
    "numbers+uppercase": Grade(NUMBERS, is_number_uppercase),
}

GRADES = {
    **{name: Grade(skill.prompts, skill.grade) for name, skill in SKILLS.items()},
    **MIXES,
    "control": Grade(CONTROL, is_right),
}
