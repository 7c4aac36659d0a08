"""Regular events are renamed in blocks, and the bytes are those of the careful way."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outfitter.engine.regular import RegularEvents, head_of
from outfitter.engine.rewrite import Identity, StreamRewriter

NAME = "tv:" + "a" * 64
TRAPS = (
    f'"model":"{NAME}"',
    f'\n\ndata: {{"id":"1","object":"x.y","created":1,"model":"{NAME}"',
    f'","model":"{NAME}","x":"',
    '\\"}\n\ndata: {"error": {}}\n\n',
    "data: [DONE]\n\n",
    "\\",
    "ü\u2028\ud83d",
)
IDENTITIES = (
    Identity("my model", "sha256:1", {"loadout": "sha256:1"}),
    Identity('a"b\\ü'),
    Identity(NAME),
)


def head(model: str = NAME, number: str = "chatcmpl-1f") -> dict[str, object]:
    return {"id": number, "object": "chat.completion.chunk", "created": 17, "model": model}


def line(fields: dict[str, object]) -> str:
    return "data: " + json.dumps(fields, separators=(",", ":"))


def said(text: str) -> str:
    """An event of text, and of arguments of a tool that are JSON in JSON."""
    call = {"index": 0, "function": {"name": "f", "arguments": json.dumps({"model": text})}}
    return line({**head(), "choices": [{"delta": {"content": text, "tool_calls": [call]}}]})


texts = st.one_of(st.sampled_from(TRAPS), st.text(max_size=20))
regular = texts.map(said)
odd = st.one_of(
    st.sampled_from(
        [
            line(head("base")),
            line(head(number="another")),
            line({"a": {"model": NAME}, **head()}),
            line({"choices": [{"model": NAME}], "model": NAME}),
            line({"error": {"message": f"no {NAME}", "code": 500}}),
            line({**head(), "model2": 1}).replace('"model":', '"model" : '),
            line(head())[:-1],
            said("x") + "\r",
            said("x") + line(head()),
            "event: x\n" + said("x"),
            "data: [DONE]",
            ": ping",
            "",
            "\n",
        ]
    ),
    st.text(max_size=12).map(lambda text: text.replace("\ud800", "")),
)
separators = st.sampled_from(["\n\n", "\n\n", "\n\n", "\n", "\n\n\n", "\r\n\r\n"])


def relayed(identity: Identity, parts: list[bytes]) -> bytes:
    rewriter = StreamRewriter(identity)
    return b"".join(map(rewriter.feed, parts)) + rewriter.finish()


def carefully(identity: Identity, stream: bytes) -> bytes:
    """A line at a time is never a block of whole events."""
    *lines, rest = stream.split(b"\n")
    return relayed(identity, [*(part + b"\n" for part in lines), rest])


def stream_of(*events: str) -> bytes:
    return "".join(event + "\n\n" for event in events).encode()


@given(
    st.sampled_from(IDENTITIES),
    st.lists(st.tuples(st.one_of(regular, regular, odd), separators), max_size=12),
    st.lists(st.integers(0, 4000), max_size=8),
)
def test_a_block_is_renamed_as_its_lines_are(
    identity: Identity, events: list[tuple[str, str]], cuts: list[int]
) -> None:
    """Whatever the engine sends, and however the network cuts it."""
    text = "".join(event + end for event, end in [(said("one"), "\n\n"), *events])
    stream = text.encode(errors="replace")
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    parts = [stream[start:end] for start, end in pairwise(edges)]
    assert relayed(identity, parts) == carefully(identity, stream)


@pytest.mark.parametrize("identity", IDENTITIES)
def test_a_stream_may_be_cut_anywhere(identity: Identity) -> None:
    """At every byte, and at every other one after it."""
    stream = stream_of(said("a"), said(TRAPS[0]), said("b"), "data: [DONE]")
    expected = carefully(identity, stream)
    for first in range(len(stream)):
        rest = stream[first:]
        for second in range(0, len(rest), 97):
            assert relayed(identity, [stream[:first], rest[:second], rest[second:]]) == expected


@pytest.mark.parametrize("trap", TRAPS)
def test_only_the_name_of_the_model_changes(trap: str) -> None:
    """What the client parses is what the engine said, but for the model."""
    identity = Identity("my model")
    sent = [said("one"), *[said(trap)] * 3]
    parts = [stream_of(sent[0]), stream_of(*sent[1:])]
    seen = relayed(identity, parts).decode().split("\n\n")[:-1]
    for event, original in zip(seen, sent, strict=True):
        assert json.loads(event[6:]) == {**json.loads(original[6:]), "model": "my model"}


@pytest.mark.parametrize(
    "fields", [head(), head(number="chatcmpl-a.b:c/d+e="), {"id": "cmpl-1", "model": "m"}]
)
def test_events_begin_as_vllm_writes_them(fields: dict[str, object]) -> None:
    """With a client's own request id, too, and without what a text completion leaves out."""
    event = line({**fields, "choices": []}).encode()
    assert head_of(event) == event.removesuffix(b',"choices":[]}')


def rename(block: bytes) -> bytes | None:
    old = head_of(said("x").encode())
    assert old is not None
    return RegularEvents(old, b"NEW").rename(block)


def test_a_regular_block_needs_no_care() -> None:
    """The quick way is taken, with traps in the texts, too."""
    block = stream_of(*map(said, TRAPS))
    found = rename(block)
    assert found is not None
    assert found.count(b"NEW") == len(TRAPS)
    assert rename(stream_of(said("x"))) is not None


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"\n\n",
        stream_of(said("x"), "data: [DONE]"),
        stream_of(said("x"), line({"error": {}})),
        stream_of(said("x"), line(head(number="another"))),
        stream_of(": ping", said("x")),
        stream_of(said("x"), said("x") + "\n"),
        stream_of(said("x") + "\n" + said("x")),
        stream_of(said("x") + "\n\n\ndata: y", said("x")),
        stream_of(said("x"))[:-1],
        stream_of(said("x"))[1:],
        b"\n" + stream_of(said("x")),
        stream_of(said("x")).replace(b"\n", b"\r\n"),
    ],
)
def test_any_other_block_is_left_to_care(block: bytes) -> None:
    """One line that is unusual is enough."""
    assert rename(block) is None


@pytest.mark.parametrize(
    "event",
    [
        line({"choices": [], **head()}),
        line({**head(), "id": {"model": "x"}}),
        line({**head(), "id": 'a"b'}),
        line({**head(), "created": None}),
        line(head()).replace("data: ", "data:"),
        " " + line(head()),
        line({"type": "response.created", **head()}),
    ],
)
def test_an_event_that_begins_otherwise_is_never_regular(event: str) -> None:
    """Only what is certain to be the outermost object's own model counts."""
    assert head_of(event.encode()) is None
