"""The engine's bytes become the client's, and nothing else changes."""

import json

import pytest

from outfitter.control.surface import Dialect
from outfitter.engine.rewrite import Identity, StreamRewriter

NAME = b"tv:" + b"a" * 64
TOKEN = b'"model":"' + NAME + b'"'
VECTORS: dict[str, object] = {"loadout": "sha256:1", "vectors": []}
IDENTITY = Identity("my model", "sha256:1", VECTORS)


def event(content: str = "x", model: bytes = NAME) -> bytes:
    fields = {"id": "1", "model": model.decode(), "choices": [{"text": content}]}
    return b"data: " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


def test_the_model_is_put_back_at_the_top_level() -> None:
    """The engine's name for a loadout becomes the name that the client sent."""
    assert IDENTITY.rename(b'{"id":1,' + TOKEN + b"}") == b'{"id":1,"model":"my model"}'


def test_a_nested_model_stays() -> None:
    """Only the key of the outermost object is the model's name."""
    body = b'{"a":{' + TOKEN + b'},"b":[{' + TOKEN + b"}]}"
    assert IDENTITY.rename(body) == body


def test_a_nested_model_before_the_real_one_stays() -> None:
    """The search goes on past a key that only looks like it."""
    body = b'{"a":{' + TOKEN + b"}," + TOKEN + b"}"
    assert IDENTITY.rename(body) == b'{"a":{' + TOKEN + b'},"model":"my model"}'


def test_a_model_inside_a_string_stays() -> None:
    """What a language model writes is nobody's business."""
    text = json.dumps({"text": TOKEN.decode(), "x": '\\"' + TOKEN.decode()}).encode()
    assert IDENTITY.rename(text) == text


def test_a_model_name_is_escaped() -> None:
    """A name with quotes gives valid JSON."""
    body = Identity('a"b\\1').rename(b"{" + TOKEN + b"}")
    assert json.loads(body) == {"model": 'a"b\\1'}


@pytest.mark.parametrize("body", [b"{}", b'{"a":1}', b' {"a":{}} \n'])
def test_the_description_is_appended(body: bytes) -> None:
    """The object gets one more key, whatever it had."""
    assert json.loads(IDENTITY.complete(body)) == {**json.loads(body), "task_vectors": VECTORS}


def test_a_base_answer_is_untouched() -> None:
    """Without task vectors the body is the engine's, byte for byte."""
    body = event(model=b"base")
    assert Identity("base").complete(body) == body
    assert StreamRewriter(Identity("base")).feed(body) == body


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
def test_a_stream_is_the_same_however_it_is_cut(size: int) -> None:
    """Names split across network chunks are found all the same."""
    trap = 'a "model":"tv:' + "a" * 64 + '" \n data: {"model"'
    stream = b": ping\n\n" + event("one") + event(trap) + b"data: [DONE]\n\n"
    rewriter = StreamRewriter(IDENTITY)
    parts = [stream[i : i + size] for i in range(0, len(stream), size)]
    result = b"".join(rewriter.feed(part) for part in parts) + rewriter.finish()
    first = event("one", b"my model").strip()[:-1]
    described = first + b',"task_vectors":' + json.dumps(VECTORS, separators=(",", ":")).encode()
    expected = [b": ping", described + b"}", event(trap, b"my model").strip(), b"data: [DONE]"]
    assert result == b"\n\n".join(expected) + b"\n\n"


RESPONSE = b'event: response.created\ndata: {"response":{"id":1,"tools":[{"model":"x"}],'
MESSAGE = b'event: message_start\ndata: {"type":"message_start","message":{"a":{"model":"x"},'


@pytest.mark.parametrize(
    ("dialect", "head"), [(Dialect.RESPONSES, RESPONSE), (Dialect.ANTHROPIC, MESSAGE)]
)
def test_the_model_is_put_back_in_what_an_event_carries(dialect: Dialect, head: bytes) -> None:
    """Not in the tools, nor in what the model calls with."""
    identity = Identity("my model", "sha256:1", None, dialect)
    event = head + TOKEN + b"}}\n\n"
    assert StreamRewriter(identity).feed(event) == head + b'"model":"my model"}}\n\n'
    other = b'data: {"item":{' + TOKEN + b'},"arguments":[{"response":{' + TOKEN + b"}}]}\n\n"
    assert StreamRewriter(identity).feed(other) == other


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
def test_named_events_are_whole_or_not_there(size: int) -> None:
    """Whatever was sent when a stream breaks off ends with an event."""
    identity = Identity("my model", "sha256:1", None, Dialect.RESPONSES)
    whole = b"event: a\ndata: 1\n\nevent: b\ndata: 2\n\n"
    rewriter = StreamRewriter(identity)
    cut = whole + b"event: c\n"
    sent = b"".join(rewriter.feed(cut[i : i + size]) for i in range(0, len(cut), size))
    assert sent == whole
    assert rewriter.feed(b"data: 3\n\n") == b"event: c\ndata: 3\n\n"


def test_a_text_about_errors_is_no_error() -> None:
    """Only an event of this type is one."""
    identity = Identity("my model", dialect=Dialect.RESPONSES)
    for data in (b'{"delta":"x","item":{"type":"error"}}', b'{"type": "error", ]'):
        event = b"event: x\ndata: " + data + b"\n\n"
        assert StreamRewriter(identity).feed(event) == event
    failed = b'event: error\ndata: {"code":"x","message":"no","type":"error"}\n\n'
    data = json.loads(StreamRewriter(identity).feed(failed).split(b"data: ")[1])
    assert (data["type"], data["error"]["message"]) == ("error", "no")


def test_only_the_first_event_is_described() -> None:
    """The loadout is said once."""
    rewriter = StreamRewriter(IDENTITY)
    assert rewriter.feed(event() * 3).count(b'"task_vectors"') == 1


def test_an_error_event_is_scrubbed_and_not_described() -> None:
    """An error inside a stream shows no inner names and claims no loadout."""
    rewriter = StreamRewriter(IDENTITY)
    line = b'data: {"error": {"message": "' + NAME + b' at /tmp/x-1/engine.sock"}}\n\n'
    error = json.loads(rewriter.feed(line)[6:])["error"]
    assert (error["message"], error["type"]) == ("my model at the engine", "server_error")
    assert not rewriter.has_described


def test_a_stream_without_a_last_newline_is_complete() -> None:
    """What is left at the end is passed on."""
    rewriter = StreamRewriter(IDENTITY)
    assert rewriter.feed(b"data: [DONE]") == b""
    assert rewriter.finish() == b"data: [DONE]"
