"""What a stream tells while it passes: tokens, times and usage, however the network cut it."""

import json
from collections.abc import Iterator

import pytest

from outfitter.control.outcome import Outcome
from outfitter.control.principal import OPEN
from outfitter.engine.hidden import Fingerprint, HiddenUsage, with_usage
from outfitter.engine.meter import StreamMeter, Usage, usage_of
from outfitter.engine.rewrite import Identity, StreamRewriter
from tests.outfitter import fake_streams

PATHS = ("/v1/completions", "/v1/chat/completions")
DONE = b"data: [DONE]\n\n"


def outcome() -> Outcome:
    return Outcome("r", OPEN, "/v1/completions", "m", None, "base", True, 0.0)


def clock(step: float = 1.0) -> Iterator[float]:
    now = 0.0
    while True:
        now += step
        yield now


def relayed(
    stream: bytes, size: int, hides_usage: bool, fingerprint: Fingerprint | None = None
) -> tuple[bytes, Outcome]:
    """What the client sees of a stream that arrives in parts of `size`, and what was noted."""
    rewriter, ticks = StreamRewriter(Identity("m")), clock()
    meter = StreamMeter(lambda: next(ticks))
    hidden = HiddenUsage(fingerprint or Fingerprint())
    seen = b""
    for start in range(0, len(stream), size):
        lines = rewriter.feed(stream[start : start + size])
        meter.feed(lines)
        seen += hidden.feed(lines) if hides_usage else lines
    seen += hidden.release() + rewriter.finish()
    told = outcome()
    meter.tell(told)
    return seen, told


def stream_of(path: str, **options: bool) -> bytes:
    body = {"model": "m", "stream": True, "stream_options": options}
    return b"".join(fake_streams.events(path, body, "two words")) + DONE


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100_000])
@pytest.mark.parametrize("path", PATHS)
def test_a_usage_that_was_not_asked_for_is_not_seen(path: str, size: int) -> None:
    """The client gets, byte for byte, the stream of an engine that was not asked for usage.

    Also the first stream, when the engine's fingerprint is not known.
    """
    fingerprint = Fingerprint()
    for _ in range(2):
        seen, told = relayed(stream_of(path, include_usage=True), size, True, fingerprint)
        assert seen == stream_of(path)
    assert (told.prompt_tokens, told.cached_tokens, told.completion_tokens) == (2, 1, 3)


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_a_usage_that_was_asked_for_stays(path: str, continuous: bool) -> None:
    """Every byte of it, also where each event has one."""
    stream = stream_of(path, include_usage=True, continuous_usage_stats=continuous)
    seen, told = relayed(stream, 50, hides_usage=False)
    assert seen == stream
    assert (told.prompt_tokens, told.cached_tokens, told.completion_tokens) == (2, 1, 3)
    assert told.num_events == 3


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_that_is_cut_counts_its_events(path: str) -> None:
    """Who speaks is no token."""
    whole = stream_of(path, include_usage=True)
    _, told = relayed(whole[: whole.index(b"three") - 20], 10, hides_usage=True)
    assert (told.prompt_tokens, told.completion_tokens) == (0, 2)


@pytest.mark.parametrize("is_known", [False, True])
def test_several_choices_end_as_they_would(is_known: bool) -> None:
    """What is written while one of them has ended is not held up."""

    def choices(is_stamped: bool) -> list[bytes]:
        ends = [(0, "a", False), (0, "b", True), (1, "c", False), (1, "d", True)]
        path = PATHS[0]
        return [
            event(chunk(path, "m", word, index=index, is_last=is_last, is_stamped=is_stamped))
            for index, word, is_last in ends
        ]

    event, chunk = fake_streams.event, fake_streams.chunk
    hidden = HiddenUsage(Fingerprint(b'"vllm-0.32.0-0a1b2c3d"' if is_known else None))
    usage = stream_of(PATHS[0], include_usage=True).split(b"\n\n")[-3] + b"\n\n"
    seen = [hidden.feed(part) for part in (*choices(is_stamped=False), usage, DONE)]
    assert sorted(b"".join(seen).split(b"\n\n")) == sorted(
        b"".join((*choices(is_stamped=True), DONE)).split(b"\n\n")
    )
    assert seen[2] == choices(is_stamped=True)[2]
    assert bool(seen[1]) == is_known


@pytest.mark.parametrize("end", [DONE, b'data: {"error": {}}\n\n', b""])
def test_a_stream_without_a_usage_loses_nothing(end: bytes) -> None:
    """However it ends."""
    stream = stream_of(PATHS[0]).replace(b',"system_fingerprint":"vllm-0.32.0-0a1b2c3d"', b"")
    stream = stream.removesuffix(DONE) + end
    for size in (1, 20, 10_000):
        seen, _ = relayed(stream, size, hides_usage=True)
        before, error, _ = seen.partition(b'data: {"error"')  # whose text is the gateway's own
        assert before.split() == stream.partition(b'data: {"error"')[0].split()
        assert bool(error) == (b"error" in end)


def test_an_engine_without_a_fingerprint_gets_none() -> None:
    """Nothing is held up after the first stream."""
    fingerprint = Fingerprint()
    fingerprint.learn(b'data: {"choices":[],"usage":{}}')
    event = fake_streams.event(fake_streams.chunk(PATHS[0], "m", "x", is_last=True))
    assert HiddenUsage(fingerprint).feed(event) == event


def test_times_are_of_the_first_and_last_token() -> None:
    """A mean over the gaps between events; none for a single event."""
    meter, ticks = StreamMeter(lambda: next(ticks)), clock(2.0)
    event = fake_streams.event(fake_streams.chunk(PATHS[0], "m", "x"))
    told = outcome()
    meter.feed(b": ping\n\n")
    meter.tell(told)
    assert told.first_token is None
    meter.feed(event)
    meter.tell(told)
    assert (told.first_token, told.inter_token_seconds) == (2.0, None)
    meter.feed(event * 3)
    meter.feed(DONE)
    meter.tell(told)
    assert (told.last_token, told.num_events) == (4.0, 4)
    assert told.inter_token_seconds == pytest.approx(2 / 3)
    assert told.first_token_seconds == 2.0


def test_what_a_model_writes_is_never_taken_for_usage() -> None:
    """Text that looks like the end of a stream is text."""
    trap = '"choices":[],"usage":{"prompt_tokens":9} data: {"error"'
    text = fake_streams.event(fake_streams.chunk(PATHS[0], "m", trap))
    seen, told = relayed(text + DONE, 1000, hides_usage=True)
    assert seen == text + DONE
    assert (told.prompt_tokens, told.num_events) == (0, 1)


def test_an_error_event_is_noticed() -> None:
    """It is no token."""
    meter = StreamMeter()
    meter.feed(b'data: {"error": {"message": "m"}}\n\n')
    told = outcome()
    meter.tell(told)
    assert (meter.has_failed, told.num_events) == (True, 0)


def test_typed_events_count_their_deltas() -> None:
    """As the Responses API sends them: what is created or done brings no token."""
    kinds = ("response.created", "response.output_text.delta", "response.output_text.delta")
    usage = {"input_tokens": 5, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 4}}
    last = {"type": "response.completed", "response": {"usage": usage}}
    stream = "".join(f"event: {kind}\ndata: {json.dumps({'type': kind})}\n\n" for kind in kinds)
    stream += f"event: response.completed\ndata: {json.dumps(last)}\n\n"
    seen, told = relayed(stream.encode(), 33, hides_usage=False)
    assert seen == stream.encode()
    assert told.num_events == 2
    assert (told.prompt_tokens, told.cached_tokens, told.completion_tokens) == (5, 4, 2)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"usage": {"prompt_tokens": 3, "completion_tokens": 2}}', Usage(3, 0, 2)),
        (b'{"data":[0.1],"usage":{"prompt_tokens":3,"total_tokens":3}}', Usage(3, 0, 0)),
        (b'{"usage":{"prompt_tokens":true,"completion_tokens":-1}}', Usage(0, 0, 0)),
        (b'{"usage":{"prompt_tokens":1}, "x":"\xff"}', None),
        (b'{"usage":{"prompt', None),
        (b'{"usage":null}', None),
        (b'{"text":"\\"usage\\":{}"}', None),
        (b"", None),
    ],
)
def test_the_usage_of_a_whole_answer_is_read(body: bytes, expected: Usage | None) -> None:
    """In every API's words; what is no usage is none."""
    assert usage_of(body) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (None, {"include_usage": True}),
        ({}, {"include_usage": True}),
        ({"include_usage": False, "continuous_usage_stats": True}, {"include_usage": True}),
        ({"include_usage": None, "x": 1}, {"include_usage": True, "x": 1}),
    ],
)
def test_a_stream_is_asked_for_its_usage(options: dict | None, expected: dict) -> None:
    """Once, at its end, and hidden."""
    fields = {"model": "m", "stream": True, "stream_options": options}
    assert with_usage(fields) == ({**fields, "stream_options": expected}, True)


@pytest.mark.parametrize(
    "fields",
    [
        {"stream": False},
        {"stream": "true"},
        {},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": {"include_usage": "no"}},
        {"stream": True, "stream_options": {"continuous_usage_stats": "x"}},
        {"stream": True, "stream_options": "x"},
        {"stream": False, "stream_options": {}},
    ],
)
def test_what_the_client_asked_for_or_got_wrong_stays(fields: dict) -> None:
    """The engine answers it as it always would."""
    assert with_usage(fields) == (fields, False)


def test_a_tool_that_is_called_usage_is_no_usage() -> None:
    """A response's events repeat the request's tools: who leaves early has used what it saw."""
    schema = {"type": "object", "properties": {"usage": {"input_tokens": 1, "output_tokens": 1}}}
    began = {"type": "response.created", "response": {"tools": [schema], "usage": None}}
    delta = {"type": "response.output_text.delta", "delta": "word"}
    meter = StreamMeter()
    for fields in (began, *[delta] * 7):
        event = f"event: {fields['type']}\ndata: {json.dumps(fields)}\n\n"
        meter.feed(event.encode())
    told = outcome()
    meter.tell(told)
    assert (told.prompt_tokens, told.completion_tokens) == (0, 7)
