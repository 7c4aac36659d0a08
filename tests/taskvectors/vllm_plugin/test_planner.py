"""The planner serves a hot loadout composed where that pays, and plain whenever it cannot.

Real: the rule, the composer's merge and store, the admission and its ledger. The engine's worker
and the clock are stand-ins; tests/end_to_end/test_placement.py has the real engine.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskvectors.errors import EngineUnavailable
from taskvectors.format import read_vector
from taskvectors.selection import parse_selection
from taskvectors.spec import Loadout, LoadoutItem
from taskvectors.store.composed import ComposedStore
from taskvectors.vector import BaseInfo, DenseDelta, LowRankDelta, SparseDelta, TaskVector
from taskvectors.vllm_plugin.composer import Composer
from taskvectors.vllm_plugin.planner import REASONS, RETRY_S, Planner
from taskvectors.vllm_plugin.service import Registry
from tests.taskvectors.merge.test_compose import FINGERPRINT, stored
from tests.taskvectors.vllm_plugin.test_admission import FakeWorker, admission_of
from tests.taskvectors.vllm_plugin.test_composer import FakeRun, config

SEED = 40
SHAPE = (400, 300)
NAMES = ("layers.0.up.weight", "layers.1.up.weight")
WEIGHTS = (1.0, 0.5, -0.5, 0.25)
POOL = 3_000_000
HOT = 1500
"""Requests after which composing two of these parameters has surely paid."""
DOCS = Path(__file__).parents[3] / "docs" / "placement.md"


def draw(seed: int, density: float = 0.2) -> TaskVector:
    generator = np.random.default_rng(SEED + seed)
    parts = {}
    for name in NAMES:
        index = np.flatnonzero(generator.random(SHAPE[0] * SHAPE[1]) < density)
        values = generator.standard_normal(len(index)).astype(np.float32)
        parts[name] = SparseDelta(SHAPE, index, values)
    return TaskVector(BaseInfo("base", FINGERPRINT), parts)


class World:
    """A planner with everything around it, over four vectors in a store."""

    def __init__(self, root: Path, *, pool_bytes: int = 1 << 26, **settings: Any) -> None:
        self.now = 0.0
        self.is_promoted = False
        self.worker = FakeWorker()
        made = config(root, pool_bytes=pool_bytes)
        self.admission = admission_of(made, self.worker)
        self.run = FakeRun(root)
        self.composed = ComposedStore(root)
        self.planner = Planner(
            Composer(made, self.run),
            self.admission,
            self.admission._files.header,
            lambda: self.is_promoted,
            clock=lambda: self.now,
            **settings,
        )

    @contextlib.asynccontextmanager
    async def request(self, loadout: Loadout) -> Any:
        """As the service does it."""
        async with self.admission.admit(loadout):
            with self.planner.placed(loadout) as form:
                yield form

    async def ask(self, loadout: Loadout, times: int = 1) -> Loadout:
        """Requests one after another; the form of the last. The background has its turn between."""
        for _ in range(times):
            async with self.request(loadout) as form:
                pass
        await asyncio.sleep(0)
        return form

    async def heat(self, loadout: Loadout) -> Loadout:
        """Ask until the background has done what can be done; the form after it."""
        for _ in range(3):
            await self.ask(loadout, HOT)
            await self.planner.settle()
        return await self.ask(loadout)

    def reasons(self) -> dict[str, int]:
        decisions = self.planner.stats()["decisions"]
        return {reason: number for reason, number in decisions.items() if number}


Test = Callable[[], Coroutine[Any, Any, None]]


def run(test: Test) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(bounded())


@pytest.fixture
def vectors() -> list[TaskVector]:
    return [draw(seed) for seed in range(4)]


@pytest.fixture
def digests(tmp_path: Path, vectors: list[TaskVector]) -> list[str]:
    return stored(tmp_path, *vectors)


@pytest.fixture
def hot(digests: list[str]) -> Loadout:
    """Four vectors that overlap: composing saves a quarter."""
    return Loadout.build([LoadoutItem(d, w) for d, w in zip(digests, WEIGHTS, strict=True)])


@pytest.fixture
def big(tmp_path: Path) -> Loadout:
    """One vector for which a pool of POOL bytes lets all others go."""
    values = np.random.default_rng(SEED).standard_normal(700_000).astype(np.float32)
    parts = {"norm.weight": DenseDelta(values)}
    [digest] = stored(tmp_path, TaskVector(BaseInfo("base", FINGERPRINT), parts))
    return Loadout.build([LoadoutItem(digest, 1.0)])


def digest_of(form: Loadout) -> str:
    [item] = form.items
    assert item.weight == 1.0
    return item.digest


def test_a_hot_loadout_is_composed_into_the_weighted_sum(
    tmp_path: Path, vectors: list[TaskVector], hot: Loadout
) -> None:
    """Once, and then served; what it is was computed here by numpy."""

    async def test() -> None:
        world = World(tmp_path)
        form = await world.heat(hot)
        assert form != hot
        read = read_vector(world.composed.path(digest_of(form)))
        for name in NAMES:
            expected = sum(
                w * v.delta(name).astype(np.float64) for w, v in zip(WEIGHTS, vectors, strict=True)
            )
            np.testing.assert_allclose(read.delta(name), expected, rtol=1e-6, atol=1e-6)
        stats = world.planner.stats()
        assert (stats["compositions"], stats["failures"], stats["loadouts"]) == (1, 0, 1)
        assert stats["requests"] == stats["decisions"]["composed"] > 0
        assert len(world.run.begun) == 1

    run(test)


def test_selections_are_composed_too(
    tmp_path: Path, vectors: list[TaskVector], digests: list[str]
) -> None:
    """A vector that is in the loadout twice, on different layers, counts once and is summed."""
    first = parse_selection({"layers": {"0": 1.0}}, "test")
    second = parse_selection({"layers": {"1": 0.5}}, "test")
    items = [LoadoutItem(d, 1.0) for d in digests[1:]]
    items += [LoadoutItem(digests[0], 2.0, first), LoadoutItem(digests[0], 3.0, second)]

    async def test() -> None:
        world = World(tmp_path)
        form = await world.heat(Loadout.build(items))
        read = read_vector(world.composed.path(digest_of(form)))
        rest = {name: sum(v.delta(name) for v in vectors[1:]) for name in NAMES}
        for name, weight in zip(NAMES, (2.0, 1.5), strict=True):
            expected = rest[name] + weight * vectors[0].delta(name)
            np.testing.assert_allclose(read.delta(name), expected, rtol=1e-5, atol=1e-5)

    run(test)


def test_a_loadout_that_is_asked_seldom_is_served_as_it_is(tmp_path: Path, hot: Loadout) -> None:
    """Nothing is even weighed."""

    async def test() -> None:
        world = World(tmp_path)
        assert await world.ask(hot, 20) == hot
        await world.planner.settle()
        assert world.reasons() == {"few_requests": 20}
        assert world.run.begun == []

    run(test)


def test_requests_do_not_wait_while_it_is_composed(
    tmp_path: Path, digests: list[str], hot: Loadout
) -> None:
    """All are served plain, and no second loadout is composed beside it."""

    async def test() -> None:
        world = World(tmp_path)
        world.run.gate.clear()
        other = Loadout.build([LoadoutItem(d, 0.7) for d in digests])
        await world.ask(hot, 40)
        await world.planner.settle()
        await world.ask(hot, 5 * HOT)
        while not world.run.begun:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        begun = world.planner.stats()["decisions"]["composing"]
        assert await world.ask(hot, 10) == hot
        assert world.planner.stats()["decisions"]["composing"] == begun + 10
        assert await world.ask(other, 100) == other
        assert len(world.run.begun) == 1
        world.run.gate.set()
        await world.planner.settle()
        assert await world.ask(hot) != hot

    run(test)


def test_a_failure_is_told_once_and_not_tried_again_soon(
    tmp_path: Path, hot: Loadout, caplog: pytest.LogCaptureFixture
) -> None:
    """Until RETRY_S have passed; no request notices."""

    async def test() -> None:
        world = World(tmp_path)
        world.run.error = EngineUnavailable("boom")
        assert await world.heat(hot) == hot
        assert len(world.run.begun) == 1
        assert world.planner.stats()["failures"] == 1
        assert world.reasons()["failed"] > 0
        world.now = 1.01 * RETRY_S
        await world.heat(hot)
        assert len(world.run.begun) == 2
        told = [record for record in caplog.records if "is served plain" in record.message]
        assert len(told) == 1
        world.run.error = None
        world.now *= 2
        assert await world.heat(hot) != hot

    with caplog.at_level(logging.WARNING):
        logging.getLogger("vllm").propagate = True
        run(test)


def test_it_evicts_nothing_to_make_room(tmp_path: Path, hot: Loadout, digests: list[str]) -> None:
    """A pool that holds the plain vectors and a little more keeps them, used or not."""

    async def test() -> None:
        sizes = [await World(tmp_path).admission.nbytes(digest) for digest in digests]
        world = World(tmp_path, pool_bytes=sum(sizes) + max(sizes))
        assert await world.heat(hot) == hot
        assert world.reasons()["no_room"] > 0
        assert world.worker.evictions == world.run.begun == []

    run(test)


def test_a_form_that_was_evicted_gives_way_to_the_plain_one(
    tmp_path: Path, hot: Loadout, big: Loadout
) -> None:
    """Without an error; it is loaded again when there is room, and not composed again."""

    async def test() -> None:
        world = World(tmp_path, pool_bytes=POOL)
        form = await world.heat(hot)
        await world.ask(big)
        assert digest_of(form) in world.worker.evictions
        assert await world.ask(hot) == hot
        assert world.reasons()["not_resident"] == 1
        await world.planner.settle()
        assert await world.ask(hot) == form
        assert len(world.run.begun) == 1

    run(test)


def _entry(world: World, form: Loadout) -> Any:
    entry = world.admission._ledger.entry(digest_of(form))
    assert entry is not None
    return entry


def test_a_form_is_held_until_the_last_user_of_its_name_has_left(
    tmp_path: Path, hot: Loadout
) -> None:
    """Also for one that was served plain before: vLLM may look up the new form for it."""

    async def test() -> None:
        world = World(tmp_path)
        form = await world.heat(hot)
        world.is_promoted = True
        async with world.request(hot) as early:
            assert early == hot
            world.is_promoted = False
            async with world.request(hot) as late:
                assert late == form
            assert _entry(world, form).users == 1
        assert _entry(world, form).users == 0

    run(test)


def test_while_something_is_promoted_all_are_served_plain(tmp_path: Path, hot: Loadout) -> None:
    """Nothing is composed; afterwards what was composed before is served again."""

    async def test() -> None:
        world = World(tmp_path)
        world.is_promoted = True
        assert await world.heat(hot) == hot
        assert world.run.begun == []
        world.is_promoted = False
        form = await world.heat(hot)
        assert form != hot
        world.is_promoted = True
        assert await world.ask(hot) == hot
        world.is_promoted = False
        assert await world.ask(hot) == form

    run(test)


def test_vectors_that_others_use_as_much_are_left_alone(
    tmp_path: Path, hot: Loadout, digests: list[str]
) -> None:
    """Their product is computed for the others anyway; so is it once that becomes so."""

    async def test() -> None:
        world = World(tmp_path)
        form = await world.heat(hot)
        other = Loadout.build([LoadoutItem(digests[0], 0.7), LoadoutItem(digests[1], 0.1)])
        assert await world.ask(hot) == form
        await world.ask(other, 4 * HOT)
        assert await world.ask(hot) == hot
        assert world.reasons()["shared"] >= 1

    run(test)


def test_a_damaged_form_is_dropped_and_composed_again(
    tmp_path: Path, hot: Loadout, big: Loadout
) -> None:
    """The worker could not load it: plain until the next attempt, which makes a sound one."""

    async def test() -> None:
        world = World(tmp_path, pool_bytes=POOL)
        form = await world.heat(hot)
        path = world.composed.path(digest_of(form))
        await world.ask(big)
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-1] + b"\0\0")
        world.worker._states = {digest_of(form): "failed: damaged"}
        assert await world.heat(hot) == hot
        assert not path.exists()
        assert world.planner.stats()["failures"] == 1
        world.worker._states = {}
        world.now += 1.01 * RETRY_S
        assert await world.heat(hot) == form
        assert world.composed.check(digest_of(form))

    run(test)


@pytest.mark.parametrize(
    ("settings", "reasons"),
    [({"is_on": False}, set()), ({"is_measured": False}, {"not_measured"})],
)
def test_where_the_rule_does_not_apply_nothing_is_composed(
    tmp_path: Path, hot: Loadout, settings: dict[str, bool], reasons: set[str]
) -> None:
    """It is off, or the kernels are not those that were measured."""

    async def test() -> None:
        world = World(tmp_path, **settings)
        assert await world.heat(hot) == hot
        assert set(world.reasons()) == reasons

    run(test)


def test_low_rank_vectors_are_not_composed_with_sparse_ones(
    tmp_path: Path, digests: list[str]
) -> None:
    """The sum would be dense."""
    draws = np.random.default_rng(SEED)
    a, b = (draws.standard_normal(shape).astype(np.float32) for shape in ((4, 300), (400, 4)))
    low = TaskVector(BaseInfo("base", FINGERPRINT), {n: LowRankDelta(SHAPE, a, b) for n in NAMES})
    [digest] = stored(tmp_path, low)
    loadout = Loadout.build([LoadoutItem(d, 1.0) for d in (digest, *digests)])

    async def test() -> None:
        world = World(tmp_path)
        assert await world.heat(loadout) == loadout
        assert world.reasons()["no_gain"] > 0
        assert world.run.begun == []

    run(test)


def test_both_forms_of_a_name_differ_for_vllm(hot: Loadout) -> None:
    """Own names, ids and paths, found under the name that was asked; ids last while in use."""
    form = Loadout((LoadoutItem("c" * 64, 1.0),))
    table: dict[str, Any] = {}
    registry = Registry(table, keep=1)
    with registry.registered(hot, hot):
        plain = table[hot.engine_name]
        with registry.registered(hot, form):
            composed = table[hot.engine_name]
            assert plain != composed
            assert plain.lora_int_id != composed.lora_int_id
            assert (plain.lora_path, composed.lora_path) == (hot.canonical, form.canonical)
            with registry.registered(hot, form):
                assert table[hot.engine_name] is composed
        with registry.registered(hot, hot):
            again = table[hot.engine_name]
            assert (again, again.lora_int_id) == (plain, plain.lora_int_id)
    assert table == {}


def test_every_reason_is_documented() -> None:
    """And no other is counted."""
    text = DOCS.read_text("utf-8")
    assert all(f"| `{reason}` |" in text for reason in REASONS)
