"""The autopilot: rolls back, ramps up and ships by itself; one at a time, each act once."""

import asyncio
import csv
import io
import json
import time
from collections.abc import Iterator

import httpx
import pytest

from outfitter.control.experiments.experiment import Experiment
from outfitter.errors import CatalogUnavailable
from outfitter.experiments import autopilot
from outfitter.experiments.analysis import Analysis
from outfitter.experiments.autopilot import LEASE_S
from tests import services
from tests.outfitter.experiments.piloted import Piloted, X, begun, history, shown
from tests.outfitter.harness import make_config, make_vector, push, running

EVEN = {"control": 300, "warm": 300}
SLOW = {"control": 1.0, "warm": 1.4}
BETTER = {"control": 0.4, "warm": 0.8}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def piloted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Piloted]:
    root, database = tmp_path_factory.mktemp("piloted"), {}
    if request.param == "postgresql":
        database["database_url"] = services.new_database(request.getfixturevalue("postgres_url"))
    loops: list[asyncio.AbstractEventLoop] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autopilot, "TICK_S", 3_600.0)
        note = lambda: loops.append(asyncio.get_running_loop())  # noqa: E731
        with running(make_config(root, **database), on_ready=note) as gateway:
            gateway.wait_ready()
            with gateway.client as client:
                push(client, make_vector(root / "warm"), "warm")
            yield Piloted(gateway, loops[0])


@pytest.fixture
def client(piloted: Piloted) -> Iterator[httpx.Client]:
    with piloted.gateway.client as client:
        yield client


@pytest.fixture
def pilot(piloted: Piloted) -> Iterator[autopilot.Autopilot]:
    piloted.clock.ahead = 0.0
    pilot = piloted.pilot()
    yield pilot
    piloted.give_back(pilot)


def test_a_regression_is_rolled_back(
    piloted: Piloted, pilot: autopilot.Autopilot, client: httpx.Client
) -> None:
    """As a version with its figures, made by nobody, in the trail; all get the control again."""
    begun(client, "slow")
    piloted.see("slow", {"control": 50, "warm": 50}, latency=SLOW)
    piloted.tick(pilot)
    assert shown(client, "slow")["status"] == "running"
    piloted.see("slow", EVEN, first=50, latency=SLOW)
    piloted.tick(pilot)
    piloted.tick(pilot)
    versions = history(client, "slow")
    assert [one["action"] for one in versions] == ["rollback", "start", "create"]
    newest = versions[0]
    assert (newest["status"], newest["by"]["tenant"]) == ("rolled_back", "automatic")
    figures = newest["figures"]["finding"]["figures"]
    assert (figures["metric"], figures["state"]) == ("latency_s", "breached")
    assert 0 < figures["lower"] < figures["effect"] < figures["upper"]
    trail = client.get("/v1/audit", params={"action": "experiment.rollback"}).json()["data"]
    entry = next(one for one in trail if one["subject"] == "slow@3")
    assert entry["detail"]["figures"] == newest["figures"]


def test_steps_of_a_ramp_follow_each_other(
    piloted: Piloted, pilot: autopilot.Autopilot, client: httpx.Client
) -> None:
    """After the units and the hours of each; only as many buckets as needed change hands."""
    ramp = [
        {"coverage": 0.1, "min_units": 100, "min_hours": 1},
        {"coverage": 0.5, "min_units": 400},
        {"coverage": 1.0},
    ]
    begun(client, "ramped", ramp=ramp)
    assert shown(client, "ramped")["coverage_now"] == 0.1
    piloted.see("ramped", {"control": 60, "warm": 60})
    piloted.tick(pilot)
    assert shown(client, "ramped")["step"] == 0
    piloted.clock.ahead = 3_700
    piloted.tick(pilot)
    found = shown(client, "ramped")
    assert (found["step"], found["coverage_now"]) == (1, 0.5)
    assert found["buckets"] == {"control": 2_500, "warm": 2_500}
    piloted.tick(pilot)
    assert shown(client, "ramped")["step"] == 1  # the units of the step before do not count
    piloted.clock.ahead += 10
    piloted.see("ramped", {"control": 200, "warm": 200}, version=3)
    piloted.tick(pilot)
    assert shown(client, "ramped")["step"] == 2
    newest = history(client, "ramped")[0]
    assert newest["action"] == "ramp"
    assert newest["figures"]["finding"]["figures"]["units"] == 400


def test_a_winner_is_saved_and_served(
    piloted: Piloted, pilot: autopilot.Autopilot, client: httpx.Client
) -> None:
    begun(client, "best", automatic={"ship": "save", "ship_as": "best-bot"})
    piloted.see("best", EVEN, grade=BETTER)
    piloted.tick(pilot)
    found = shown(client, "best")
    assert (found["status"], found["winner"]) == ("shipped", "warm")
    newest = history(client, "best")[0]
    assert newest["figures"]["saved"] == "best-bot@1"
    assert newest["figures"]["finding"]["kind"] == "winner"
    saved = client.get("/v1/loadouts/best-bot").json()
    assert saved["digest"] == found["resolved"]["warm"]["loadout"]
    chat = {"model": "best-bot", "messages": [{"role": "user", "content": "hi"}]}
    assert client.post("/v1/chat/completions", json=chat).status_code == 200


def test_what_fails_is_tried_again_ever_more_rarely(
    piloted: Piloted, pilot: autopilot.Autopilot, client: httpx.Client
) -> None:
    """Here promotions are not allowed."""
    begun(client, "stuck", automatic={"ship": "promote"})
    piloted.see("stuck", EVEN, grade=BETTER)
    for _ in range(3):
        piloted.tick(pilot)
    rests = pilot._rests_until["stuck"] - time.monotonic()
    assert 3 * autopilot.AFTER_FAILURE_S < rests <= 4 * autopilot.AFTER_FAILURE_S
    pilot._failures["stuck"] = 1000
    piloted.tick(pilot)
    assert pilot._rests_until["stuck"] - time.monotonic() <= autopilot.MAX_REST_S
    assert shown(client, "stuck")["status"] == "running"
    client.post(f"{X}/stuck/stop")


@pytest.mark.parametrize("error", [ZeroDivisionError("broken"), CatalogUnavailable("too much")])
def test_what_breaks_on_one_experiment_holds_up_no_other(
    piloted: Piloted,
    pilot: autopilot.Autopilot,
    client: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    """Its error is logged, and it rests; so does one whose sums take the database too long."""
    broken, slow = f"a-{type(error).__name__}", f"b-{type(error).__name__}"
    begun(client, broken)
    begun(client, slow)
    piloted.see(slow, EVEN, latency=SLOW)
    analyse = pilot._analyst.analyse

    def breaks(experiment: Experiment) -> Analysis:
        if experiment.name == broken:
            raise error
        return analyse(experiment)

    monkeypatch.setattr(pilot._analyst, "analyse", breaks)
    piloted.tick(pilot)
    assert shown(client, slow)["status"] == "rolled_back"
    assert pilot._failures == {broken: 1}
    assert str(error) in caplog.text
    client.post(f"{X}/{broken}/stop")


def test_one_bad_variant_of_two_is_dropped(
    piloted: Piloted, pilot: autopilot.Autopilot, client: httpx.Client
) -> None:
    """The other one goes on, and weights that were changed are no mismatch."""
    begun(client, "two", ("warm", "dry"))
    units = {**EVEN, "dry": 300}
    piloted.see("two", units, latency={**SLOW, "dry": 1.0})
    piloted.tick(pilot)
    found = shown(client, "two")
    assert found["status"] == "running"
    assert found["buckets"] == {"control": 5_000, "dry": 5_000}
    piloted.see("two", {"control": 400, "dry": 400}, version=3)
    piloted.tick(pilot)
    assert shown(client, "two")["version"] == 3
    results = client.get(f"{X}/two/results").json()
    planned = {"control": 700, "warm": 300, "dry": 700}
    assert results["units"]["planned"] == pytest.approx(planned, abs=0.1)  # 3,334 buckets of 10,000
    assert not results["units"]["is_mismatch"]
    assert results["weights"] == {"control": 0.5, "warm": 0.0, "dry": 0.5}


def test_an_act_can_be_vetoed_before_it_comes(
    piloted: Piloted, pilot: autopilot.Autopilot, client: httpx.Client
) -> None:
    """It waits in sight, and stays away until the veto is lifted."""
    begun(client, "vetoed", automatic={"veto_s": 600})
    piloted.see("vetoed", EVEN, latency=SLOW)
    piloted.tick(pilot)
    pending = shown(client, "vetoed")["pending"]
    assert (pending["act"], pending["variant"]) == ("rollback:warm", "warm")
    told = client.get(f"{X}/vetoed/results").json()["pending"]
    assert told.pop("figures")["finding"]["variant"] == "warm"
    assert pending == told  # whoever may only use it gets no figures
    answer = client.post(f"{X}/vetoed/veto")
    assert answer.status_code == 200, answer.text
    assert answer.json()["forbidden"] == ["rollback:warm"]
    piloted.clock.ahead = 700
    piloted.tick(pilot)
    assert shown(client, "vetoed")["status"] == "running"
    lifted = client.post(f"{X}/vetoed/veto", json={"act": "rollback:warm", "lift": True})
    assert lifted.json()["forbidden"] == []
    piloted.tick(pilot)
    assert shown(client, "vetoed")["pending"]["due"] > pending["due"]
    piloted.clock.ahead = 1_290
    piloted.tick(pilot)
    assert shown(client, "vetoed")["status"] == "running"
    piloted.clock.ahead = 1_310
    piloted.tick(pilot)
    assert shown(client, "vetoed")["status"] == "rolled_back"
    actions = [one["action"] for one in history(client, "vetoed")]
    assert actions == ["rollback", "propose", "allow", "veto", "propose", "start", "create"]


def test_a_kind_of_act_can_be_forbidden_for_good(
    piloted: Piloted, pilot: autopilot.Autopilot, client: httpx.Client
) -> None:
    begun(client, "never")
    assert client.post(f"{X}/never/veto", json={"act": "rollback"}).status_code == 200
    piloted.see("never", EVEN, latency=SLOW)
    piloted.tick(pilot)
    assert shown(client, "never")["status"] == "running"
    assert client.get(f"{X}/never/results").json()["verdict"]["kind"] == "guardrail_breached"


def test_wrong_vetoes_are_refused(client: httpx.Client) -> None:
    begun(client, "wrong")
    answer = client.post(f"{X}/wrong/veto")
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "nothing_pending"
    answer = client.post(f"{X}/wrong/veto", json={"act": "explode"})
    assert answer.status_code == 400
    assert "'explode'" in answer.json()["error"]["message"]
    answer = client.post(f"{X}/wrong/veto", json={"acts": "ramp"})
    assert answer.json()["error"]["param"] == "acts"


def test_one_gateway_acts_at_a_time_and_another_follows_when_it_dies(
    piloted: Piloted, client: httpx.Client
) -> None:
    first, second = piloted.pilot(), piloted.pilot()
    begun(client, "leased")
    piloted.tick(first)
    piloted.see("leased", EVEN, latency=SLOW)
    piloted.tick(second)
    assert shown(client, "leased")["status"] == "running"  # the first one holds the lease
    piloted.clock.ahead += LEASE_S + 1  # and is not heard of any more
    piloted.tick(second)
    assert shown(client, "leased")["status"] == "rolled_back"
    piloted.tick(first)
    assert len(history(client, "leased")) == 3
    piloted.give_back(second)


def test_two_that_act_at_once_act_once(
    piloted: Piloted, pilot: autopilot.Autopilot, client: httpx.Client
) -> None:
    """Whatever the lease says: an act is made on the version that was analysed."""
    begun(client, "raced")
    piloted.see("raced", EVEN, latency=SLOW)
    inner = piloted.gateway.inner
    stale = inner.analyst.analyse(inner.book.find(None, "raced"))
    piloted.tick(pilot)
    steering = pilot._steer(stale)
    with pytest.raises(Exception, match="has version 3, not 2"):
        asyncio.run_coroutine_threadsafe(steering, piloted.loop).result(60)
    assert len(history(client, "raced")) == 3


def test_what_changed_since_it_was_analysed_is_not_shipped(
    piloted: Piloted, client: httpx.Client
) -> None:
    """Nor is anything saved or promoted, which a later version would not undo."""
    automatic = {"ship": "save", "ship_as": "untimely"}
    begun(client, "stale", automatic=automatic)
    piloted.see("stale", EVEN, grade=BETTER)
    inner, pilot = piloted.gateway.inner, piloted.pilot()
    stale = inner.analyst.analyse(inner.book.find(None, "stale"))
    client.patch(f"{X}/stale", json={"hypothesis": "Not yet."})
    with pytest.raises(Exception, match="has version 3, not 2"):
        asyncio.run_coroutine_threadsafe(pilot._steer(stale), piloted.loop).result(60)
    piloted.give_back(pilot)
    assert client.get("/v1/loadouts/untimely").status_code == 404
    client.post(f"{X}/stale/stop")


def test_results_and_their_csv_have_the_same_numbers(
    piloted: Piloted, client: httpx.Client
) -> None:
    begun(client, "told")
    piloted.see("told", EVEN, grade=BETTER)
    results = client.get(f"{X}/told/results").json()
    assert (results["verdict"]["kind"], results["verdict"]["variant"]) == ("winner", "warm")
    answer = client.get(f"{X}/told/results", headers={"accept": "text/csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    metric = next(one for one in results["metrics"] if one["name"] == "good")
    row = next(one for one in rows if one["metric"] == "good" and one["variant"] == "warm")
    compared = metric["comparisons"][0]
    for name in ("effect", "lower", "upper", "p_value", "lift", "alpha"):
        assert float(row[name]) == compared[name]
    assert float(row["value"]) == metric["variants"]["warm"]["value"] == 0.8
    assert int(row["units"]) == 300
    wrong = client.get(f"{X}/told/results", params={"format": "xml"})
    assert wrong.json()["error"]["message"] == "unknown format 'xml'; choose json, csv"


def test_events_are_told_one_by_one(piloted: Piloted, client: httpx.Client) -> None:
    begun(client, "raw")
    piloted.see("raw", {"control": 3, "warm": 4})
    answer = client.get(f"{X}/raw/events")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert len(rows) == 7
    assert {row["variant"] for row in rows} == {"control", "warm"}
    assert json.loads(rows[0]["grades"]).keys() == {"good"}


def test_an_experiment_without_units_says_so(client: httpx.Client) -> None:
    """A draft too."""
    body = {"name": "draft", "variants": [{"key": key, "model": "base-model"} for key in "ab"]}
    assert client.post(X, json=body).status_code == 201
    assert client.get(f"{X}/draft/results").json()["verdict"]["kind"] == "nothing_yet"
    begun(client, "empty")
    results = client.get(f"{X}/empty/results").json()
    assert results["verdict"]["kind"] == "nothing_yet"
    assert results["metrics"][0]["comparisons"][0]["waits_for"]
