"""How good an answer is: graders that are built in, or a function of one's own."""

import functools
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from outfitter.config import InvalidConfig
from outfitter.control.experiments.graders import Grader as Rule
from outfitter.tuning.prompts import Prompt

DEFAULT_FUNCTION = "grade"
ARGUMENTS = ("prompt", "answer", "expected", "row", "messages")
"""What a function of one's own may ask for, by the names of its parameters."""
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?")


class GraderFailed(Exception):
    """A grader raised, or returned what is no score; the answer has no score then."""


@dataclass(frozen=True)
class Grader:
    """Scores answers, the higher the better. identity: changes when the grader does."""

    name: str
    identity: str
    score: Callable[[Prompt, str], object]
    needs_expected: bool = False
    default: Any = None
    """What is expected where a prompt says nothing."""

    def grade(self, prompt: Prompt, answer: str) -> float:
        """A finite number, True as 1 and False as 0; raises GraderFailed."""
        try:
            score = self.score(prompt, answer)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise GraderFailed(f"grader {self.name} failed on {_shown(prompt)}: {what}") from error
        if isinstance(score, bool | int | float) or hasattr(score, "__float__"):
            number = float(score)
            if math.isfinite(number):
                return number
        raise GraderFailed(
            f"grader {self.name} returned {str(score)[:80]!r} on {_shown(prompt)};"
            " return a finite number, or True or False"
        )

    def expected(self, prompt: Prompt) -> Any:
        """What a right answer to a prompt is."""
        return self.default if prompt.expected is None else prompt.expected

    def check(self, prompts: list[Prompt]) -> None:
        """Raise InvalidConfig where nothing says what is right."""
        if not self.needs_expected:
            return
        for number, prompt in enumerate(prompts, 1):
            if self.expected(prompt) is None:
                raise InvalidConfig(
                    f'prompt {number} ({_shown(prompt)}) has no "expected", which the grader'
                    f" {self.name} needs; add it, or give --expected for all"
                )
            try:
                self.grade(prompt, "")
            except GraderFailed as error:
                raise InvalidConfig(str(error)) from error


def find_grader(name: str, default: str | None = None) -> Grader:
    """A grader by its name: built in, `module:function`, `file.py` or `file.py:function`.

    default: what is expected where a prompt says nothing. Raises InvalidConfig.
    """
    if name in BUILT_IN:
        return _built_in(name, default)
    source, _, function = name.rpartition(":") if ":" in name else (name, "", "")
    if not (source.endswith(".py") or function):
        choices = ", ".join(BUILT_IN)
        raise InvalidConfig(
            f"unsupported --grader {name!r}; choose {choices}, module:function or file.py:function"
        )
    module = _from_file(Path(source)) if source.endswith(".py") else _from_name(source)
    found = getattr(module, function or DEFAULT_FUNCTION, None)
    if not callable(found):
        raise InvalidConfig(f"--grader {name!r}: there is no function {function or 'grade'!r}")
    file = inspect.getsourcefile(module)
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else "built in"
    identity = f"{Path(source).name}:{function or DEFAULT_FUNCTION} {digest}"
    return _own(name, identity, found, default)


def is_exact(expected: Any, answer: str) -> bool:
    """The answer is what is expected, or one of it, but for spaces around it."""
    return any(answer.strip() == str(one).strip() for one in _each(expected))


def contains(expected: Any, answer: str) -> bool:
    """What is expected, or one of it, is in the answer, in small letters or capitals."""
    return any(str(one).casefold() in answer.casefold() for one in _each(expected))


def matches(expected: Any, answer: str) -> bool:
    """The regular expression is found in the answer, as by graders of experiments."""
    return bool(_rule("regex", "pattern", json.dumps(expected)).grade(answer))


def is_number(expected: Any, answer: str) -> bool:
    """The last number of the answer is the expected one, to a millionth; `1,234.5` is one."""
    found = [text for text in _NUMBER.findall(answer) if any(map(str.isdigit, text))]
    number = float(str(expected).replace(",", ""))
    return bool(found) and math.isclose(float(found[-1].replace(",", "")), number, rel_tol=1e-6)


def fits_schema(expected: Any, answer: str) -> bool:
    """The answer is JSON, and fits the JSON schema, given as such or as a text."""
    schema = expected if isinstance(expected, str) else json.dumps(expected)
    return bool(_rule("json_schema", "schema", schema).grade(answer))


BUILT_IN: Mapping[str, Callable[[Any, str], bool]] = {
    "exact": is_exact,
    "contains": contains,
    "regex": matches,
    "number": is_number,
    "json_schema": fits_schema,
}


def _built_in(name: str, default: str | None) -> Grader:
    judge = BUILT_IN[name]

    def score(prompt: Prompt, answer: str) -> bool:
        return judge(default if prompt.expected is None else prompt.expected, answer)

    return Grader(name, f"{name} {default!r}", score, needs_expected=True, default=default)


def _own(name: str, identity: str, function: Callable[..., object], default: str | None) -> Grader:
    parameters = inspect.signature(function).parameters.values()
    free = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    asked = [p.name for p in free if p.name in ARGUMENTS]
    unknown = [p.name for p in free if p.name not in ARGUMENTS and p.default is p.empty]
    if unknown:
        raise InvalidConfig(
            f"--grader {name!r} asks for {unknown[0]!r}; name parameters of {', '.join(ARGUMENTS)}"
        )

    def score(prompt: Prompt, answer: str) -> object:
        expected = default if prompt.expected is None else prompt.expected
        values = (prompt.text, answer, expected, prompt.row, prompt.messages)
        given = dict(zip(ARGUMENTS, values, strict=True))
        return function(**{key: given[key] for key in asked})

    return Grader(name, f"{identity} {default!r}", score, default=default)


def _from_file(path: Path) -> ModuleType:
    """Run a file as a module; its folder is where its own imports are looked for too."""
    if not path.is_file():
        raise InvalidConfig(f"unsupported --grader {str(path)!r}; there is no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.append(str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise InvalidConfig(f"--grader {str(path)!r} does not load: {what}") from error
    return module


def _from_name(name: str) -> ModuleType:
    sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise InvalidConfig(f"--grader module {name!r} does not load: {what}") from error


@functools.lru_cache(maxsize=1024)
def _rule(kind: str, field: str, rule: str) -> Rule:
    """rule: as JSON. Raises ApiError, ValueError."""
    return Rule.of({"name": kind, "kind": kind, field: json.loads(rule)})


def _each(expected: Any) -> list[Any]:
    return expected if isinstance(expected, list) else [expected]


def _shown(prompt: Prompt) -> str:
    return repr(prompt.text[:60])
