"""Who goes next: nobody waits for another's flood, nobody is forgotten, and numbers add up."""

import heapq
import itertools
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from outfitter.control.fair_queue import FairQueue, Place
from outfitter.errors import ApiError


def queue_of(max_running: int = 1, max_waiting: int = 100) -> FairQueue:
    return FairQueue(max_running, max_waiting, lambda: 0.0)


def enter(fair: FairQueue, tenant: str, **limits: int) -> Place:
    place, pushed = fair.enter(tenant, **limits)
    assert pushed is None
    return place


def test_with_room_nobody_waits() -> None:
    """And a full engine makes the next one wait until somebody leaves."""
    queue = queue_of(2)
    first, second, third = (enter(queue, "a") for _ in range(3))
    assert (first.is_running, second.is_running, third.is_running) == (True, True, False)
    assert queue.leave(second) == [third]
    assert third.is_running
    assert (queue.num_running, queue.num_waiting) == (2, 0)


def test_one_tenant_is_served_in_the_order_of_arrival() -> None:
    """As if there were no fairness."""
    queue = queue_of()
    places = [enter(queue, "a") for _ in range(5)]
    for current, following in itertools.pairwise(places):
        assert queue.leave(current) == [following]


def test_a_newcomer_is_next_whatever_flood_is_before_it() -> None:
    """It waits for one request to end, not for fifty."""
    queue = queue_of()
    running = enter(queue, "flood")
    for _ in range(50):
        enter(queue, "flood")
    newcomer = enter(queue, "b")
    assert queue.leave(running) == [newcomer]


def test_tenants_take_turns() -> None:
    """Requests of one price alternate."""
    queue = queue_of()
    running = enter(queue, "a")
    for tenant in "aaabbb":
        enter(queue, tenant)
    order = ""
    while queue.num_waiting:
        [running] = queue.leave(running)
        order += running.tenant
    assert order in ("bababa", "abbaba", "babaab")
    assert order.count("a") == 3


def test_who_uses_many_tokens_has_fewer_turns() -> None:
    """Ten times the tokens a request is about a tenth of the requests."""
    served = Simulation(slots=1, mean_tokens={"long": 1000, "short": 100}).run(400)
    counts = [sum(1 for job in served if job.tenant == name) for name in ("long", "short")]
    assert 7 <= counts[1] / counts[0] <= 13


def test_who_was_away_has_saved_up_nothing() -> None:
    """A tenant that returns takes turns from then on, and does not make up for lost time."""
    queue = queue_of()
    running = enter(queue, "b")
    enter(queue, "a")
    for _ in range(500):
        enter(queue, "a") if queue.num_waiting < 2 else None
        [running] = queue.leave(running)
    for tenant in "a" * 20 + "b" * 20:
        enter(queue, tenant)
    order = ""
    for _ in range(12):
        [running] = queue.leave(running)
        order += running.tenant
    assert 5 <= order.count("b") <= 7


def test_what_requests_were_taken_for_is_put_right_to_the_token() -> None:
    """Also where the mean has moved since they began: ten that run at once cost what they cost."""
    queue = queue_of(10)
    places = [enter(queue, "a") for _ in range(10)]
    for place in places:
        queue.settle("a", 1000, place.charged)
    assert queue._tenants["a"].tag == 10 * 1000


def test_a_limit_of_its_own_makes_a_tenant_wait_and_nobody_else() -> None:
    """Though the engine has room; and it saves up nothing meanwhile."""
    queue = queue_of(10)
    first = enter(queue, "a", most=1)
    second = enter(queue, "a", most=1)
    assert enter(queue, "b").is_running
    assert not second.is_running
    assert queue.is_at_limit("a")
    assert queue.leave(first) == [second]


def test_a_tenants_queue_is_bounded() -> None:
    """429, with what runs and waits, and when to come back."""
    queue = queue_of(10)
    enter(queue, "a", most=1, queue=1)
    enter(queue, "a", most=1, queue=1)
    with pytest.raises(ApiError, match=r"of tenant 'a' run \(conc.* 1\) and 1 wait") as caught:
        queue.enter("a", most=1, queue=1)
    assert (caught.value.status, caught.value.code) == (429, "tenant_queue_full")
    assert int(caught.value.headers["retry-after"]) >= 1
    assert enter(queue, "b", queue=0).is_running


def test_the_whole_queue_is_bounded() -> None:
    """503 for the tenant that fills it."""
    queue = queue_of(1, 3)
    for _ in range(4):
        enter(queue, "a")
    with pytest.raises(ApiError, match="3 requests wait") as caught:
        queue.enter("a")
    assert (caught.value.status, caught.value.code) == (503, "server_busy")
    assert "retry-after" in caught.value.headers


def test_a_full_queue_makes_room_for_who_has_less_of_it() -> None:
    """The newest request of the tenant with most has to leave, until both have the same."""
    queue = queue_of(1, 4)
    flood = [enter(queue, "a") for _ in range(5)]
    places = [queue.enter("b") for _ in range(2)]
    assert [pushed for _, pushed in places] == [flood[4], flood[3]]
    with pytest.raises(ApiError, match="server is busy"):
        queue.enter("b")
    assert queue.num_waiting == 4
    assert queue.leave(flood[4]) == []
    assert queue.num_waiting == 4


def test_no_queue_at_all_can_be_had() -> None:
    """Then a full engine refuses."""
    queue = queue_of(1, 0)
    enter(queue, "a")
    with pytest.raises(ApiError, match="server is busy"):
        queue.enter("b")


def test_who_leaves_the_queue_frees_the_place() -> None:
    """And is never served."""
    queue = queue_of(1, 2)
    running, gone, last = (enter(queue, "a") for _ in range(3))
    assert queue.leave(gone) == []
    assert queue.num_waiting == 1
    assert queue.leave(running) == [last]


def test_retry_after_follows_the_pace() -> None:
    """Ten wait and one ends every two seconds: twenty seconds and a bit."""
    now = itertools.count(0, 2.0)
    queue = FairQueue(1, 10, lambda: next(now))
    running = enter(queue, "a")
    for _ in range(50):
        enter(queue, "a")
        [running] = queue.leave(running)
    for _ in range(10):
        enter(queue, "a")
    with pytest.raises(ApiError) as caught:
        queue.enter("a")
    assert 20 <= int(caught.value.headers["retry-after"]) <= 24


@dataclass(order=True)
class Job:
    """A request of a simulation; times in seconds."""

    ends: float
    number: int
    tenant: str = field(compare=False)
    tokens: int = field(compare=False)
    place: Place = field(compare=False)
    came: float = field(compare=False)
    began: float = field(compare=False, default=-1.0)


@dataclass
class Simulation:
    """An engine of `slots` that makes 100 tokens a second in each; tenants are always backlogged
    unless `every` gives seconds between their requests."""

    slots: int
    mean_tokens: dict[str, int]
    backlog: int = 20
    every: dict[str, float] = field(default_factory=dict)
    seed: int = 0

    def run(self, num_ends: int) -> list[Job]:
        """What has ended."""
        self.queue = FairQueue(self.slots, 10_000, lambda: self.now)
        self.dice, self.now, self.numbers = random.Random(self.seed), 0.0, itertools.count()
        self.jobs: dict[Place, Job] = {}
        self.running: list[Job] = []
        arrivals = [(0.0, tenant) for tenant in self.every]
        for tenant in self.mean_tokens.keys() - self.every.keys():
            for _ in range(self.backlog):
                self._arrive(tenant)
        done: list[Job] = []
        while len(done) < num_ends:
            if arrivals and (not self.running or arrivals[0][0] <= self.running[0].ends):
                self.now, tenant = heapq.heappop(arrivals)
                self._arrive(tenant)
                heapq.heappush(arrivals, (self.now + self.every[tenant], tenant))
                continue
            job = heapq.heappop(self.running)
            self.now = job.ends
            self.queue.settle(job.tenant, job.tokens, job.place.charged)
            self._begin(self.queue.leave(job.place))
            done.append(job)
            if job.tenant not in self.every:
                self._arrive(job.tenant)
        return done

    def _arrive(self, tenant: str) -> None:
        mean = self.mean_tokens[tenant]
        tokens = self.dice.randint(mean // 2, mean + mean // 2)
        place = enter(self.queue, tenant)
        self.jobs[place] = Job(0.0, next(self.numbers), tenant, tokens, place, self.now)
        if place.is_running:
            self._begin([place])

    def _begin(self, places: list[Place]) -> None:
        for place in places:
            job = self.jobs.pop(place)
            job.began, job.ends = self.now, self.now + job.tokens / 100
            heapq.heappush(self.running, job)


@pytest.mark.parametrize("slots", [1, 8])
@pytest.mark.parametrize("flood", [20, 500])
def test_a_flood_does_not_make_others_wait_much_longer(slots: int, flood: int) -> None:
    """B, within its half, waits for at most two requests of A on average, however many A sends."""
    tokens = {"flood": 400, "b": 200}
    every = {"b": 6.0 / slots}
    served = Simulation(slots, tokens, backlog=flood, every=every).run(800)
    waits = [job.began - job.came for job in served if job.tenant == "b"]
    assert len(waits) > 100
    longest_request = 1.5 * 400 / 100
    assert sum(waits) / len(waits) <= 2 * longest_request / slots
    assert max(waits) <= 4 * longest_request


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(10, 2000), min_size=2),
    st.integers(1, 6),
    st.integers(0, 9),
)
@settings(max_examples=30)
def test_backlogged_tenants_get_the_same_tokens(
    means: dict[str, int], slots: int, seed: int
) -> None:
    """Within a few of the largest requests, whatever each of them sends."""
    served = Simulation(slots, means, backlog=8, seed=seed).run(600)
    tokens = dict.fromkeys(means, 0)
    for job in served:
        tokens[job.tenant] += max(job.tokens, 32)
    assert max(tokens.values()) - min(tokens.values()) <= 12 * slots * max(means.values())


class Machine(RuleBasedStateMachine):
    """Whatever happens in whatever order, bounds hold, and what waits is served in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = FairQueue(3, 6, lambda: 0.0)
        self.places: list[Place] = []

    @rule(
        tenant=st.sampled_from("abc"),
        most=st.none() | st.integers(1, 3),
        queue=st.none() | st.integers(0, 4),
    )
    def enter(self, tenant: str, most: int | None, queue: int | None) -> None:
        try:
            place, pushed = self.queue.enter(tenant, most=most, queue=queue)
        except ApiError:
            return
        self.places.append(place)
        if pushed is not None:
            self.places.remove(pushed)

    @precondition(lambda self: self.places)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(self.places))
        self.places.remove(place)
        assert all(served in self.places for served in self.queue.leave(place))

    @rule(
        tenant=st.sampled_from("abc"),
        tokens=st.integers(0, 10**6),
        charged=st.floats(32, 10**6),
    )
    def settle(self, tenant: str, tokens: int, charged: float) -> None:
        self.queue.settle(tenant, tokens, charged)

    @invariant()
    def numbers_add_up(self) -> None:
        running = [place for place in self.places if place.is_running]
        assert self.queue.num_running == len(running) <= 3
        assert self.queue.num_waiting == len(self.places) - len(running) <= 6
        for tenant, (num_running, num_waiting) in self.queue.stats().items():
            assert num_running == sum(place.tenant == tenant for place in running)
            mine = [place for place in self.places if place.tenant == tenant]
            assert num_waiting == len(mine) - num_running

    def teardown(self) -> None:
        while running := [place for place in self.places if place.is_running]:
            self.places.remove(running[0])
            self.queue.leave(running[0])
        assert self.places == []


TestMachine = Machine.TestCase
