"""The file of prompts, and its split."""

import json
from pathlib import Path

import pytest

from outfitter.config import InvalidConfig
from outfitter.tuning.prompts import read_prompts, split_prompts


def written(folder: Path, *rows: object) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


def test_prompts_and_messages_are_read(tmp_path: Path) -> None:
    """A text is one message of a user; empty lines are nothing; other fields are kept."""
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    path = written(
        tmp_path, {"prompt": "a", "expected": 1, "topic": "x"}, "", {"messages": messages}
    )
    (first, second), digest = read_prompts(path)
    assert first.messages == ({"role": "user", "content": "a"},)
    assert (first.expected, first.row["topic"]) == (1, "x")
    assert (second.text, second.expected, len(digest)) == ("q", None, 64)


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    """JSON may have a line separator or a next line within a text, as it is."""
    texts = ["a\u2028b", "a\x85b", "a\u2029"]
    rows = (json.dumps({"prompt": text}, ensure_ascii=False) for text in texts)
    prompts, _ = read_prompts(written(tmp_path, *(f"{row}\r" for row in rows)))
    assert [one.text for one in prompts] == texts


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("nonsense", ("jsonl:1", "not JSON")),
        ([1], ("jsonl:1", "either")),
        ({"prompt": "a", "messages": []}, ("either",)),
        ({"expected": "a"}, ("either",)),
        ({"prompt": 3}, ("must be a text",)),
        ({"messages": "a"}, ("list",)),
        ({"messages": [{"content": "a"}]}, ("role",)),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, row: object, words: tuple[str, ...]) -> None:
    """With its number."""
    with pytest.raises(InvalidConfig) as caught:
        read_prompts(written(tmp_path, row))
    assert all(word in str(caught.value) for word in words)


def test_a_split_is_seeded_and_leaks_nothing(tmp_path: Path) -> None:
    """Prompts that ask the same are on one side, and every prompt is on one."""
    rows = [{"prompt": str(i % 20), "expected": i} for i in range(40)]
    prompts, _ = read_prompts(written(tmp_path, *rows))
    split = split_prompts(prompts, 0.4, 7)
    assert split == split_prompts(prompts, 0.4, 7) != split_prompts(prompts, 0.4, 8)
    assert sorted(split.search + split.held_out) == list(range(40))
    asked = [{prompts[i].text for i in side} for side in (split.search, split.held_out)]
    assert asked[0].isdisjoint(asked[1])
    assert len(asked[1]) == 8


def test_too_few_prompts_are_refused(tmp_path: Path) -> None:
    """With what each side would have."""
    prompts, _ = read_prompts(written(tmp_path, *({"prompt": str(i)} for i in range(7))))
    with pytest.raises(InvalidConfig, match="leave 4 held out and 3 to search on"):
        split_prompts(prompts, 0.5, 0)
