"""What a gateway records of the requests of an experiment, through a journal and through Redis."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from outfitter.control.experiments.exposure import Exposure
from outfitter.control.experiments.graders import Grader
from outfitter.control.experiments.measures import Metric, built_in
from outfitter.control.outcome import Outcome
from outfitter.control.prices import Prices
from outfitter.control.principal import Principal
from outfitter.experiments.events import writer
from outfitter.experiments.events.recorder import Recorder
from outfitter.statistics.moments import total
from taskvectors.store.settings import TierSettings
from tests.outfitter.experiments.making import looped
from tests.outfitter.harness import Running, make_config, make_vector, push, running, wait_for
from tests.outfitter.test_cli import fails, invoke

NAME = "lab/tone"
GRADERS = [
    {"name": "ends", "kind": "regex", "pattern": "three$"},
    {"name": "is_json", "kind": "json_schema", "schema": {"type": "object"}, "sample": 1.0},
    {"name": "never", "kind": "exact", "expected": "x", "sample": 0.0},
]
EXPERIMENT = {
    "name": NAME,
    "variants": [{"key": "plain", "model": "base-model"}, {"key": "new", "task_vectors": {"a": 1}}],
    "metrics": [
        {"name": "helpful", "kind": "proportion", "covariate": "completion_tokens"},
        {"name": "ends", "source": "grader"},
    ],
    "graders": GRADERS,
    "primary": "helpful",
}
MESSAGES = [{"role": "user", "content": "a b"}]


@pytest.fixture(scope="module", params=["journal", "redis"])
def lab(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A gateway with an experiment that runs."""
    root = tmp_path_factory.mktemp("recorded")
    tiers = TierSettings()
    if request.param == "redis":
        tiers = TierSettings(redis_url=request.getfixturevalue("redis_url"), redis_prefix=root.name)
    config = make_config(root, tiers=tiers, prices=Prices(1e6, 0.0, 2e6))
    with pytest.MonkeyPatch.context() as patch, running(config) as gateway:
        patch.setattr(writer, "FLUSH_S", 0.1)
        gateway.wait_ready()
        with gateway.client as client:
            push(client, make_vector(root / "a"), "a")
            assert client.post("/v1/experiments", json=EXPERIMENT).status_code == 201
            ask(client, "before", "past")
            assert client.post(f"/v1/experiments/{NAME}/start").status_code == 200
        yield gateway
        assert gateway.inner.recorder.stats()["is_shared"] == (request.param == "redis")


@pytest.fixture
def client(lab: Running) -> Iterator[httpx.Client]:
    with lab.client as client:
        yield client


def ask(
    client: httpx.Client,
    request_id: str,
    user: str | None = "u",
    path: str = "completions",
    **more: object,
) -> httpx.Response:
    text = {"messages": MESSAGES} if path == "chat/completions" else {"prompt": "a b"}
    body = {"model": f"exp:{NAME}", **text, **({} if user is None else {"user": user}), **more}
    return client.post(f"/v1/{path}", json=body, headers={"x-request-id": request_id})


def row(lab: Running, request_id: str, *, is_graded: bool = False) -> dict:
    """The one row of a request, once it is written."""
    found: list[dict] = []

    def is_there() -> bool:
        found[:] = [one for one in lab.inner.events.rows(NAME) if one["request_id"] == request_id]
        return bool(found) and (not is_graded or bool(found[0]["grades"]))

    wait_for(is_there)
    [only] = found
    return only


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_recorded_with_what_was_measured(
    lab: Running, client: httpx.Client, path: str, stream: bool
) -> None:
    """Latency, tokens, cost, why it ended, and the grades of its text."""
    request_id = f"{path.replace('/', '-')}-{stream}"
    answer = ask(client, request_id, path=path, stream=stream)
    assert answer.status_code == 200
    found = row(lab, request_id, is_graded=True)
    label = f"{NAME}@{found['version']}/{found['variant']}"
    assert answer.headers["x-outfitter-variant"] == label
    assert (found["unit"], found["status"], found["error"], found["finish_reason"]) == (
        *("u", 200, 0, "stop"),
    )
    assert 0 < found["latency_s"] < 60
    assert (found["first_token_s"] is None) != stream
    prompt, cached, completion = (
        found[f"{name}_tokens"] for name in ("prompt", "cached", "completion")
    )
    assert (prompt, completion, cached) == (2, 3, 1)
    assert found["cost"] == prompt - cached + 2 * completion
    assert found["grades"] == {"ends": float(stream), "is_json": 0.0}
    assert abs(time.time() - found["at"]) < 60
    assert found["is_counted"]
    assert not found["is_shadow"]


@pytest.mark.parametrize("path", ["responses", "messages"])
def test_other_apis_are_recorded_too(lab: Running, client: httpx.Client, path: str) -> None:
    """Whole and as a stream."""
    for stream in (False, True):
        request_id = f"{path}-{stream}"
        text = {"input": "a b"} if path == "responses" else {"messages": MESSAGES, "max_tokens": 5}
        body = {"model": f"exp:{NAME}", **text, "stream": stream}
        body |= {"user": "u"} if path == "responses" else {"metadata": {"user_id": "u"}}
        headers = {"x-request-id": request_id}
        assert client.post(f"/v1/{path}", json=body, headers=headers).status_code == 200
        found = row(lab, request_id)
        assert (found["unit"], found["completion_tokens"]) == ("u", 3)


def test_what_failed_is_an_error_without_a_latency(lab: Running, client: httpx.Client) -> None:
    """Refused by the engine, or in the middle of a stream."""
    assert ask(client, "refused", prompt="vllm error").status_code == 400
    found = row(lab, "refused")
    assert (found["status"], found["error"], found["latency_s"]) == (400, 1, None)
    assert found["completion_tokens"] is None
    assert '"error"' in ask(client, "failed", prompt="fail midway", stream=True).text
    found = row(lab, "failed")
    assert (found["status"], found["error"], found["latency_s"]) == (500, 1, None)
    assert found["completion_tokens"] > 0


def test_whoever_leaves_was_exposed(lab: Running, client: httpx.Client) -> None:
    """That is no error, and has no latency."""
    body = {"model": f"exp:{NAME}", "prompt": "hang midway", "user": "leaver", "stream": True}
    headers = {"x-request-id": "left"}
    with client.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
        next(answer.iter_raw())
    found = row(lab, "left")
    assert (found["status"], found["error"], found["latency_s"]) == (499, 0, None)


def test_what_does_not_count_is_not_kept(lab: Running, client: httpx.Client) -> None:
    """Without a unit, forced, or with another model; but a covariate knows what was before."""
    assert ask(client, "nobody", None).status_code == 200
    forced = {"x-request-id": "forced", "x-outfitter-force-variant": "new"}
    body = {"model": f"exp:{NAME}", "prompt": "x", "user": "u"}
    assert client.post("/v1/completions", json=body, headers=forced).status_code == 200
    assert ask(client, "other", model="base-model").status_code == 200
    assert ask(client, "last", "past").status_code == 200
    assert not row(lab, "before")["is_counted"]
    assert row(lab, "last")["is_counted"]
    kept = {one["request_id"] for one in lab.inner.events.rows(NAME)}
    assert not kept & {"nobody", "forced", "other"}


def test_feedback_is_joined_however_late(lab: Running, client: httpx.Client) -> None:
    """Sent once, sent again, sent as lines; and moments know of it, and of the past."""
    assert ask(client, "rated", "past").status_code == 200
    row(lab, "rated")
    for value in (0, 1):
        body = {"request_id": "rated", "metric": "helpful", "value": value}
        answer = client.post("/v1/feedback", json=body)
        assert answer.json() == {"object": "feedback", "received": 1}, answer.text
    lines = [{"request_id": f"rated{i}", "metric": "tone", "label": "warm"} for i in range(10_000)]
    content = "\n".join(map(json.dumps, lines)) + "\n"
    headers = {"content-type": "application/jsonl"}
    answer = client.post("/v1/feedback", content=content, headers=headers)
    assert answer.json() == {"object": "feedback", "received": 10_000}
    assert row(lab, "rated")["feedback"] == {"helpful": [1.0]}
    helpful = Metric("helpful", "feedback", "proportion", "up", covariate="completion_tokens")
    known = {"completion_tokens": built_in("completion_tokens")}
    moments = total(lab.inner.events.moments(NAME, [helpful], known)["helpful"].values())
    assert (moments.n, moments.x, moments.z) == (1, 1.0, 3.0)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "request_id", "required"),
        ({"request_id": "a b", "metric": "m", "value": 1}, "request_id", "not 'a b'"),
        ({"request_id": "a", "metric": "m"}, "value", "neither"),
        ({"request_id": "a", "metric": "m", "value": 1, "label": "x"}, "value", "both"),
        ({"request_id": "a", "metric": "m", "value": "1"}, "value", "number from -1e+12"),
        ({"request_id": "a", "metric": "m", "value": True}, "value", "number"),
        ({"request_id": "a", "metric": "", "value": 1}, "metric", "64 letters"),
        ({"request_id": "a", "metric": "m", "label": "x\n"}, "label", "printable"),
        ({"request_id": "a", "metric": "m", "label": "x" * 257}, "label", "256"),
        ({"request_id": "a", "metric": "m", "value": 1, "id": "a b"}, "id", "'a b'"),
        ({"request_id": "a", "metric": "m", "value": 1, "user": "x"}, "user", "choose"),
    ],
)
def test_feedback_that_cannot_be_is_refused(
    client: httpx.Client, body: dict, param: str, words: str
) -> None:
    """What was wrong, its value, and what would be right; in lines also which one."""
    error = client.post("/v1/feedback", json=body)
    assert error.status_code == 400
    told = error.json()["error"]
    assert words in told["message"]
    if body:
        assert told["param"] == param
    good = {"request_id": "a", "metric": "never-kept", "value": 1}
    content = f"{json.dumps(good)}\n\n{json.dumps(body)}\n"
    headers = {"content-type": "application/x-ndjson; charset=utf-8"}
    told = client.post("/v1/feedback", content=content, headers=headers).json()["error"]
    assert told["param"] == f"line 3.{param}", told


def test_lines_that_are_too_many_or_no_json_are_refused(client: httpx.Client) -> None:
    """With all the others."""
    headers = {"content-type": "application/jsonl"}
    line = '{"request_id": "a", "metric": "m", "value": 1}\n'
    for content, words in ((line * 10_001, "10000"), ("{\n", "line 1"), ("", "no line")):
        answer = client.post("/v1/feedback", content=content, headers=headers)
        assert answer.status_code == 400
        assert words in answer.json()["error"]["message"]


def test_the_command_sends_one_and_imports_files(
    lab: Running, client: httpx.Client, tmp_path: Path
) -> None:
    """JSON lines or CSV; again changes nothing."""
    assert ask(client, "cli-1").status_code == 200
    row(lab, "cli-1")
    url = ("--url", lab.url)
    sent = invoke("feedback", "send", "cli-1", "helpful", "--value", "-0.5", *url)
    assert sent.exit_code == 0, sent.output
    table, lines = tmp_path / "f.csv", tmp_path / "f.jsonl"
    table.write_text("request_id,metric,value,label\ncli-1,stars,4,\ncli-1,tone,,warm\n")
    lines.write_text('{"request_id": "cli-1", "metric": "stars", "value": 5, "id": "x"}\n\n')
    for file, number in ((table, 2), (table, 2), (lines, 1)):
        told = invoke("feedback", "import", file, *url)
        assert told.exit_code == 0, told.output
        assert f"{number} received" in told.output
    wanted = {"helpful": [-0.5], "stars": [4.0, 5.0], "tone": ["warm"]}
    assert row(lab, "cli-1")["feedback"] == wanted


def test_what_a_file_has_wrong_is_told_with_its_line(lab: Running, tmp_path: Path) -> None:
    """Before anything of it is sent."""
    url = ("--url", lab.url)
    for name, text, words in (
        ("a.jsonl", "{", ("line 1", "no JSON")),
        ("b.jsonl", '\n{"request_id": "a"}', ("line 2", "metric", "required")),
        ("c.csv", "request,metric\n", ("'request'", "request_id")),
        ("d.csv", "request_id,metric,value\na,m,much\n", ("line 2", "'much'")),
    ):
        (tmp_path / name).write_text(text)
        fails(invoke("feedback", "import", tmp_path / name, *url), *words)
    fails(invoke("feedback", "send", "a b", "m", "--value", "1", *url), "request_id")


def test_shadows_are_recorded_as_such(lab: Running, client: httpx.Client) -> None:
    """With requests of their own, and no unit."""
    shadow = {"key": "dark", "task_vectors": {"a": 2}, "shadow": 1.0}
    body = {**EXPERIMENT, "name": "lab/dark", "variants": [*EXPERIMENT["variants"], shadow]}
    assert client.post("/v1/experiments", json=body).status_code == 201
    assert client.post("/v1/experiments/lab/dark/start").status_code == 200
    ask(client, "lit", model="exp:lab/dark")
    events = lab.inner.events
    wait_for(lambda: "dark" in events.mirrored("lab/dark", []))
    dark = [one for one in events.rows("lab/dark") if one["is_shadow"]]
    assert [(one["variant"], one["unit"], one["error"]) for one in dark] == [("dark", "u", 0)]
    assert sum(events.units("lab/dark").values()) == 1
    [told] = client.get("/v1/experiments/lab/dark/results").json()["shadows"]
    assert (told["variant"], told["requests"]) == ("dark", 1)
    found = {one["name"]: one for one in told["metrics"]}
    assert (found["error"]["pairs"], found["error"]["value"]) == (1, 0)
    [copy] = [one["latency_s"] for one in dark]
    assert found["latency_s"]["value"] == copy
    assert found["latency_s"]["effect"] == copy - found["latency_s"]["original"]
    rows = client.get("/v1/experiments/lab/dark/results?format=csv").text.splitlines()
    own = [line.split(",") for line in rows if ",shadow," in line]
    place = rows[0].split(",").index("value")
    assert str(copy) in [line[place] for line in own]
    shown = invoke("experiment", "results", "lab/dark", "--url", lab.url).output
    assert "shadow dark: 1 requests mirrored; error 0 against 0" in " ".join(shown.split())


def test_the_events_of_an_experiment_go_with_it(lab: Running, client: httpx.Client) -> None:
    """One of the same name begins anew."""
    body = {**EXPERIMENT, "name": "lab/gone"}
    for _ in range(2):
        assert client.post("/v1/experiments", json=body).status_code == 201
        assert client.post("/v1/experiments/lab/gone/start").status_code == 200
        ask(client, "gone-1", model="exp:lab/gone")
        wait_for(lambda: sum(lab.inner.events.units("lab/gone").values()) == 1)
        assert client.post("/v1/experiments/lab/gone/stop").status_code == 200
        assert client.delete("/v1/experiments/lab/gone").status_code == 200
        assert list(lab.inner.events.rows("lab/gone")) == []


@looped
async def test_every_grade_that_an_answer_does_not_get_is_counted(tmp_path: Path) -> None:
    """That of one that is too long, and of one that there is no time for."""
    recorder = Recorder(tmp_path, lambda _: None, lambda: None, Prices())
    graders = tuple(Grader.of(one) for one in GRADERS)
    exposure = Exposure(NAME, 2, "plain", "u", is_counted=True, graders=graders)
    for number, (text, ungraded) in enumerate((("x" * 70_000, 2), ("short", 4))):
        outcome = Outcome(
            f"r{number}",
            Principal("lab", None, frozenset()),
            "",
            "",
            None,
            "",
            is_stream=False,
            began=0.0,
        )
        outcome.exposure = exposure
        recording = recorder.begin(outcome)
        assert recording is not None
        recording.whole(json.dumps({"choices": [{"text": text}]}).encode())
        await recording.settle(200)
        assert recorder.num_ungraded == ungraded
        recorder._ungraded = asyncio.Queue(1)
        recorder._ungraded.put_nowait(None)
