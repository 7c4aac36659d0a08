"""Why an answer ended, and its text, in the words of every API."""

import json

import pytest

from outfitter.engine.answers import MAX_TEXT, AnswerReader
from tests.outfitter.fake_shapes import SHAPES, sse
from tests.outfitter.fake_streams import events

WORDS = ("one", "two", "three")


def stream_of(path: str) -> bytes:
    shape, body = SHAPES[path], {"model": "m"}
    if not shape.is_named:
        return b"".join(events(path, body, "x"))
    made = [*shape.begin(body), *(shape.part(body, word) for word in WORDS), *shape.end(body)]
    return b"".join(sse(one, True) for one in made)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/v1/completions", 'one"model":"m"three'),
        ("/v1/chat/completions", 'one"model":"m"three'),
        ("/v1/responses", "onetwothree"),
        ("/v1/messages", "onetwothree"),
    ],
)
def test_a_stream_tells_its_text_and_its_reason(path: str, text: str) -> None:
    """However it is cut into blocks of lines."""
    lines = stream_of(path).splitlines(keepends=True)
    for size in (1, 3, len(lines)):
        reader = AnswerReader(wants_text=True)
        for start in range(0, len(lines), size):
            reader.feed(b"".join(lines[start : start + size]))
        assert (reader.text, reader.finish_reason) == (text, "stop")


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"]
)
def test_a_whole_answer_tells_the_same(path: str) -> None:
    """The first of several choices."""
    reader = AnswerReader(wants_text=True)
    body = SHAPES[path].whole({"model": "m", "n": 2}, 'a "text"')
    if path == "/v1/responses":
        body["status"] = "completed"
    reader.whole(json.dumps(body).encode())
    assert (reader.text, reader.finish_reason) == ('a "text"', "stop")


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"index": 0, "text": "a", "finish_reason": "length"}]},
        {"content": [{"type": "text", "text": "a"}], "stop_reason": "max_tokens"},
        {
            "object": "response",
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
            "output": [{"content": [{"text": "a"}]}],
        },
    ],
)
def test_what_was_cut_off_is_called_length(body: dict) -> None:
    """In whatever words."""
    reader = AnswerReader(wants_text=True)
    reader.whole(json.dumps(body).encode())
    assert (reader.text, reader.finish_reason) == ("a", "length")


def test_a_text_says_nothing_of_the_reason() -> None:
    """A model may write what it likes."""
    reader = AnswerReader(wants_text=False)
    text = '"finish_reason":"length"'
    reader.whole(json.dumps({"choices": [{"text": text, "finish_reason": "stop"}]}).encode())
    assert (reader.text, reader.finish_reason) == (None, "stop")


def test_a_text_that_is_too_long_is_not_kept() -> None:
    """The reason is."""
    reader = AnswerReader(wants_text=True)
    for _ in range(MAX_TEXT // 1_000 + 2):
        reader.feed(b'data: {"choices":[{"index":0,"text":"%s"}]}\n' % (b"x" * 1_000))
    reader.feed(b'data: {"choices":[{"index":0,"text":"x","finish_reason":"stop"}]}\n')
    assert (reader.text, reader.finish_reason) == (None, "stop")


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b'{"choices":3,"output":[1],"content":{}}'])
def test_what_is_no_answer_has_no_text(raw: bytes) -> None:
    """And harms nothing."""
    reader = AnswerReader(wants_text=True)
    reader.whole(raw)
    reader.feed(b"data: " + raw + b"\n")
    assert (reader.text, reader.finish_reason) == ("", None)
