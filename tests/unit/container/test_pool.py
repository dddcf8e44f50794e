"""The pool with a driver that makes no real containers; its clock moves only when a test moves it."""

from __future__ import annotations

import asyncio
import errno
import json
import secrets
import shutil
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoagent.common.units import MIB
from nanoagent.container import charges, engine_watch
from nanoagent.container import pool as pool_module
from nanoagent.container.base import RecyclingFailure
from nanoagent.container.budget import Budget
from nanoagent.container.cgroup import ControlGroup
from nanoagent.container.demand import MEMORY_S
from nanoagent.container.policy import (
    GENERIC_MEMORY_MB,
    Binding,
    ContainerState,
    Owner,
    OwnerSource,
    Sharing,
)
from nanoagent.container.pool import Pool
from nanoagent.jobs.admission import Admission
from nanoagent.model.errors import ContainerError, DamagedCode, PlatformError, ReturnToQueue
from nanoagent.model.job import Runtime
from nanoagent.model.result import Isolation, Start
from nanoagent.model.returns import ReturnReason
from nanoagent.telemetry.metrics import Metrics
from nanoagent.telemetry.status import Health
from support.doubles.fake_driver import FakeDriver, fake_policy
from support.doubles.fake_supervisor import Script, hello, ready
from support.sandboxes.containers import worker_home

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from nanoagent.container.pool import AcquiredContainer
    from nanoagent.container.worker_home import WorkerHome

WAIT_S = 20.0
NO_POOL = dict.fromkeys(Runtime, 0)
ONE_PYTHON = NO_POOL | {Runtime.PYTHON: 1}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A pool and everything around it.

    Args:
        home: The worker's folder.
        tree: Code for its bindings.
        changes: Fields of `PoolPolicy`.
    """

    def __init__(self, home: WorkerHome, tree: Path, **changes: Any) -> None:
        self.home, self.tree = home, tree
        self.policy = fake_policy(**({"sizes": ONE_PYTHON} | changes))
        self.driver, self.clock = FakeDriver(), Clock()
        self.metrics, self.health = Metrics(), Health()
        self.pool = Pool(self.driver, home, self.policy, self.metrics, self.health, clock=self.clock)

    def binding(self, function: str = "f", **changes: Any) -> Binding:
        fields: dict[str, Any] = {
            "runtime": Runtime.PYTHON,
            "function_id": function,
            "digest": "d",
            "memory_mb": GENERIC_MEMORY_MB,
            "cpus": 1.0,
            "most_cpus": 2.0,
            "tree": self.tree,
            "tree_bytes": 1,
        }
        return Binding(**(fields | changes))

    async def run(self, function: str = "f", *, clean: bool = True, **changes: Any) -> AcquiredContainer:
        """One run in an acquired container, from beginning to end."""
        async with self.pool.acquire(self.binding(function, **changes)) as acquired:
            acquired.clean = clean
        return acquired

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let everyone else take their steps, one turn of the loop after another, until that is so."""
        async with asyncio.timeout(WAIT_S):
            while not condition():  # noqa: ASYNC110 - the pool has no event for each of its steps
                await asyncio.sleep(0)

    async def removals(self) -> None:
        """Wait until what is to be removed is removed."""
        async with asyncio.timeout(WAIT_S):
            while self.pool._retirement.removals:
                await asyncio.gather(*self.pool._retirement.removals)

    def idle(self, runtime: Runtime = Runtime.PYTHON, *, generic: bool | None = None) -> int:
        return sum(
            generic is None or pooled.is_generic == generic for pooled in self.pool._inventory.idle(runtime)
        )

    def value(self, metric: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(metric, labels) or 0.0

    @property
    def ids(self) -> list[str]:
        return [pooled.container.id for pooled in self.pool._inventory.all()]

    @property
    def busy(self) -> int:
        return self.pool._inventory.busy(Runtime.PYTHON)

    @property
    def waiting(self) -> int:
        return self.pool._context.waiting.count(Runtime.PYTHON)

    @property
    def starting(self) -> int:
        return self.pool._creation.starting(Runtime.PYTHON)

    @property
    def budget(self) -> Budget:
        return self.pool._context.budget

    @property
    def counted_mb(self) -> int:
        """What the containers that are up count for, added up anew."""
        return sum(pooled.memory_mb for pooled in self.pool._inventory.all())

    @property
    def slots(self) -> list[str]:
        return [path.name for path in (self.home.path / "slots").iterdir()]


@pytest.fixture
def home() -> Iterator[WorkerHome]:
    with worker_home() as home:
        yield home


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    pack = tmp_path / "pack"
    pack.write_text("a pack")
    return pack


@pytest.fixture
def open_bench(home: WorkerHome, tree: Path) -> Callable[..., Any]:
    @asynccontextmanager
    async def open_bench(**changes: Any) -> AsyncIterator[Bench]:
        bench = Bench(home, tree, **changes)
        try:
            yield bench
        finally:
            bench.driver.may_create.set()
            bench.driver.may_remove.set()
            await bench.pool.close()
        assert (bench.driver.running, bench.slots) == ({}, [])
        assert bench.budget == Budget(bench.policy.memory_mb, bench.policy.most_containers)

    return open_bench


@pytest.fixture
async def bench(open_bench: Callable[..., Any]) -> AsyncIterator[Bench]:
    async with open_bench() as bench:
        await bench.pool.start()
        await bench.pool.filled()
        yield bench


# --- sizes


async def test_as_many_are_kept_ready_per_runtime_as_is_set(open_bench):
    sizes = {Runtime.PYTHON: 3, Runtime.NODEJS: 1, Runtime.CPP: 0, Runtime.GO: 2}
    async with open_bench(sizes=sizes) as bench:
        await bench.pool.start()
        await bench.pool.filled()
        assert {runtime: bench.idle(runtime, generic=True) for runtime in Runtime} == sizes


async def test_one_that_leaves_is_replaced_while_its_run_goes_on(bench):
    async with bench.pool.acquire(bench.binding()):
        await bench.until(lambda: bench.idle(generic=True) == 1)
    assert len(bench.driver.created) == 2


async def test_a_pool_larger_than_the_budget_is_filled_as_far_as_the_budget_goes(open_bench):
    async with open_bench(sizes=NO_POOL | {Runtime.PYTHON: 20}, memory_mb=500) as bench:
        await bench.pool.start()
        await bench.pool.filled()
        assert bench.idle() == 3


async def test_every_container_has_a_different_user_id(open_bench):
    async with open_bench(sizes=NO_POOL | {Runtime.PYTHON: 5}) as bench:
        await bench.pool.start()
        await bench.pool.filled()
        assert len({spec.uid for spec in bench.driver.created}) == 5


# --- where a container comes from


async def test_the_first_run_of_a_function_is_warm_and_the_next_is_hot(bench):
    first, second = await bench.run(), await bench.run()
    assert (first.start, second.start) == (Start.WARM, Start.HOT)
    assert first.container is second.container
    assert bench.value("worker_container_starts_total", runtime="python", start="hot") == 1


async def test_a_run_that_finds_no_container_is_cold(open_bench):
    async with open_bench(sizes=NO_POOL) as bench:
        await bench.pool.start()
        assert (await bench.run()).start is Start.COLD


@pytest.mark.parametrize(
    "change",
    [{"function_id": "g"}, {"digest": "e"}, {"memory_mb": 256}, {"runtime": Runtime.GO}],
    ids=lambda change: next(iter(change)),
)
async def test_a_container_never_serves_another(bench, change):
    first = await bench.run()
    second = await bench.run(**change)
    assert second.container is not first.container
    assert second.start is not Start.HOT


async def test_two_runs_at_a_time_have_two_containers(bench):
    async with bench.pool.acquire(bench.binding()) as one, bench.pool.acquire(bench.binding()) as two:
        assert one.container is not two.container


async def test_a_bound_container_has_its_code_and_its_limits(bench):
    async with bench.pool.acquire(bench.binding(memory_mb=256, cpus=0.25, most_cpus=0.5)) as acquired:
        assert (acquired.container.work_directory.path / "code").read_text() == "a pack"
        limits = bench.driver.running[acquired.container.id].limits
    assert limits[0] >= 256 * MIB
    assert limits[1:] == (0.25, 0.5)


async def test_those_who_wait_get_containers_in_their_order(open_bench):
    async with open_bench(sizes=NO_POOL) as bench:
        await bench.pool.start()
        bench.driver.may_create.clear()
        runs: list[asyncio.Task[AcquiredContainer]] = []
        for function in "abcd":
            runs.append(asyncio.create_task(bench.run(function)))
            await bench.until(lambda: bench.waiting == len(runs))
        bench.driver.may_create.set()
        ran = await asyncio.gather(*runs)
        assert [acquired.container.id for acquired in ran] == [
            "fake-0",
            "fake-1",
            "fake-2",
            "fake-3",
        ]


async def test_a_container_that_was_meant_for_the_pool_goes_to_a_job_that_waits(open_bench):
    async with open_bench() as bench:
        bench.driver.may_create.clear()
        await bench.pool.start()
        run = asyncio.create_task(bench.run())
        await bench.until(lambda: bench.waiting > 0)
        bench.driver.may_create.set()
        assert (await run).start is Start.COLD


# --- retirement


async def test_a_container_is_thrown_away_after_an_unclean_run(bench):
    acquired = await bench.run(clean=False)
    await bench.removals()
    assert acquired.container.id in bench.driver.removed
    assert bench.value("worker_containers_retired_total", reason="unclean") == 1


async def test_a_container_is_thrown_away_when_its_run_raises(bench):
    with pytest.raises(ZeroDivisionError):
        async with bench.pool.acquire(bench.binding()) as acquired:
            raise ZeroDivisionError
    await bench.removals()
    assert acquired.container.id in bench.driver.removed


async def test_a_container_serves_max_runs_and_no_more(open_bench):
    async with open_bench(max_runs=3) as bench:
        await bench.pool.start()
        ran = [await bench.run() for _ in range(4)]
        assert [acquired.reuse for acquired in ran] == [True, True, False, True]
        assert len({acquired.container.id for acquired in ran}) == 2


async def test_a_container_of_a_build_is_never_used_for_a_run(bench):
    build = await bench.run(purpose="build")
    await bench.removals()
    assert not build.reuse
    assert build.container.id in bench.driver.removed


async def test_an_idle_container_is_retired_after_its_time(bench):
    acquired = await bench.run()
    bench.clock.now = 59
    bench.pool._retirement.sweep_once()
    assert bench.idle(generic=False) == 1
    bench.clock.now = 60
    bench.pool._retirement.sweep_once()
    await bench.removals()
    assert acquired.container.id in bench.driver.removed
    assert bench.value("worker_containers_retired_total", reason="idle") == 1


async def test_a_generic_container_is_replaced_when_it_is_old(bench):
    bench.clock.now = 1000
    bench.pool._retirement.sweep_once()
    await bench.removals()
    await bench.until(lambda: bench.idle(generic=True) == 1)
    assert len(bench.driver.created) == 2


async def test_a_dead_idle_container_is_replaced_when_its_death_is_told(bench):
    (dead,) = bench.driver.running
    bench.driver.kill(dead)
    await bench.until(lambda: dead not in bench.ids and bench.idle() == 1)
    assert bench.value("worker_containers_retired_total", reason="died") == 1
    assert (await bench.run()).container.id != dead


async def test_a_dead_idle_container_is_not_leased_though_nobody_told_of_its_death(bench):
    (dead,) = bench.driver.running
    bench.driver.kill(dead, silently=True)
    (pooled,) = bench.pool._inventory.idle(Runtime.PYTHON)
    async with asyncio.timeout(WAIT_S):
        await pooled.container.session._stream.wait_end()
    assert (await bench.run()).container.id != dead


async def test_deaths_are_heard_again_after_the_events_ended(bench, monkeypatch):
    monkeypatch.setattr(engine_watch, "_EVENTS_RETRY_S", 0)
    bench.driver.end_events()
    (dead,) = bench.driver.running
    bench.driver.kill(dead)
    await bench.until(lambda: dead not in bench.ids)


async def test_the_death_of_a_leased_container_is_dealt_with_when_its_lease_ends(bench):
    async with bench.pool.acquire(bench.binding()) as acquired:
        bench.driver.kill(acquired.container.id)
        await bench.removals()
        await bench.until(lambda: bench.idle(generic=True) == 1)
        assert acquired.container.id in bench.ids
    assert acquired.container.id not in bench.ids


async def test_a_container_that_died_is_retired_though_its_run_was_clean(bench):
    async with bench.pool.acquire(bench.binding()) as acquired:
        (pooled,) = (
            pooled for pooled in bench.pool._inventory.all() if pooled.container is acquired.container
        )
        bench.driver.kill(acquired.container.id)
        await bench.until(lambda: pooled.state is ContainerState.DEAD)
        assert bench.busy == 1
        acquired.clean = True
    assert acquired.container.id not in bench.ids
    assert bench.value("worker_containers_retired_total", reason="died") == 1


# --- binding that fails


async def test_code_that_cannot_be_copied_is_an_error_and_costs_the_container(open_bench):
    async with open_bench() as bench:
        bench.driver.script = Script(on_prepare=ready(error=28))
        await bench.pool.start()
        with pytest.raises(ContainerError, match="No space left"):
            await bench.run()
        await bench.removals()
        assert bench.driver.removed == ["fake-0"]


async def test_damaged_code_is_an_error_of_its_own(open_bench):
    async with open_bench() as bench:
        bench.driver.script = Script(on_prepare=ready(error=errno.EBADMSG))
        await bench.pool.start()
        with pytest.raises(DamagedCode, match="CODE_CACHE_DIR is damaged"):
            await bench.run()
        await bench.removals()
        assert bench.driver.removed == ["fake-0"]


async def test_code_that_is_not_there_is_an_error_and_costs_the_container(bench, tmp_path):
    with pytest.raises(PlatformError, match="could not be put into a work directory"):
        await bench.run(tree=tmp_path / "nowhere")
    await bench.removals()
    assert bench.driver.removed == ["fake-0"]


async def test_an_image_of_another_protocol_is_refused_with_the_remedy(open_bench):
    async with open_bench(sizes=NO_POOL) as bench:
        bench.driver.script = Script(on_connect=hello(version=999))
        await bench.pool.start()
        with pytest.raises(ContainerError, match=r"protocol version 999.*nanoagent images"):
            await bench.run()


# --- the budget


async def test_the_least_valuable_container_makes_room_for_another_function(open_bench):
    async with open_bench(sizes=NO_POOL, memory_mb=400) as bench:
        await bench.pool.start()
        seldom = await bench.run("seldom")
        often = await bench.run("often")
        bench.clock.now = 10
        await bench.run("often")
        await bench.run("new", memory_mb=200)
        await bench.removals()
        assert bench.driver.removed == [seldom.container.id]
        assert (await bench.run("often")).container is often.container


async def test_a_job_waits_for_room_that_others_hold(open_bench):
    async with open_bench(sizes=NO_POOL, memory_mb=256) as bench:
        await bench.pool.start()
        async with bench.pool.acquire(bench.binding("large", memory_mb=200)):
            waiting = asyncio.create_task(bench.run("small"))
            await bench.until(lambda: bench.budget.wanted_mb > 0)
            assert len(bench.driver.created) == 1
        assert (await waiting).start is Start.COLD


async def test_refills_do_not_take_the_room_that_a_job_waits_for(open_bench):
    async with open_bench(memory_mb=300) as bench:
        await bench.pool.start()
        await bench.pool.filled()
        async with bench.pool.acquire(bench.binding("large", memory_mb=300)):
            await bench.until(lambda: not bench.starting)
            assert bench.budget.committed_mb == bench.counted_mb == 300


runs = st.lists(
    st.tuples(
        st.sampled_from("abcd"), st.sampled_from([32, 64, 128, 200, 256, 512]), st.booleans(), st.booleans()
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=25, deadline=None)
@given(runs=runs, python=st.integers(0, 3), budget_mb=st.sampled_from([512, 640, 1000]))
def test_the_budget_is_never_exceeded_and_everyone_is_served(runs, python, budget_mb):
    async def scenario() -> None:
        with worker_home() as home:
            tree = home.path / "pack"
            tree.write_text("a pack")
            bench = Bench(
                home, tree, sizes=NO_POOL | {Runtime.PYTHON: python, Runtime.GO: 1}, memory_mb=budget_mb
            )
            admission = Admission(budget_mb, 100)  # as in the worker: each of them has been admitted
            notify = bench.pool._context.changes.notify

            def checked() -> None:
                assert bench.counted_mb <= bench.budget.committed_mb <= budget_mb
                notify()

            bench.pool._context.changes.notify = checked  # type: ignore[method-assign] # looks on at every change
            await bench.pool.start()

            async def run(function: str, memory_mb: int, clean: bool, in_go: bool) -> None:  # noqa: FBT001 - drawn
                runtime = Runtime.GO if in_go else Runtime.PYTHON
                async with admission.reserve(memory_mb, 1.0):
                    await bench.run(function, clean=clean, memory_mb=memory_mb, runtime=runtime)
                    checked()

            async with asyncio.timeout(WAIT_S):
                await asyncio.gather(*(run(*drawn) for drawn in runs))
            await bench.pool.close()
            assert bench.driver.running == {}
            assert bench.budget.committed_mb == 0

    asyncio.run(scenario())


# --- the demand for generic containers


async def first_runs(bench: Bench, number: int, runtime: Runtime = Runtime.PYTHON) -> None:
    """Run that many new functions, all at the same time of the clock."""
    for _ in range(number):
        await bench.run(secrets.token_hex(4), runtime=runtime)


async def test_more_are_kept_ready_after_several_were_taken_at_once(open_bench):
    async with open_bench(memory_mb=64 * GENERIC_MEMORY_MB) as bench:
        await bench.pool.start()
        await bench.pool.filled()
        await first_runs(bench, 4)
        await bench.until(lambda: not bench.starting)
        assert bench.idle(generic=True) == 4
        bench.clock.now = MEMORY_S + 1
        bench.pool._retirement.sweep_once()
        await bench.removals()
        assert bench.idle(generic=True) == 1
    assert bench.value("worker_containers_retired_total", reason="surplus") == 3


async def test_none_are_kept_ready_for_a_runtime_without_a_warm_pool(open_bench):
    async with open_bench(memory_mb=64 * GENERIC_MEMORY_MB) as bench:
        await bench.pool.start()
        await first_runs(bench, 4, Runtime.GO)
        await bench.until(lambda: not bench.pool._creation.starting(Runtime.GO))
        assert bench.idle(Runtime.GO, generic=True) == 0


async def test_hot_runs_and_compilations_ask_for_no_more(open_bench):
    async with open_bench(memory_mb=64 * GENERIC_MEMORY_MB) as bench:
        await bench.pool.start()
        await bench.pool.filled()
        await bench.run()
        for _ in range(5):
            assert (await bench.run()).start is Start.HOT
            await bench.run(purpose="compile")
        await bench.until(lambda: not bench.starting)
        assert bench.idle(generic=True) == 1


async def test_the_demand_does_not_evict_containers_of_functions(open_bench):
    async with open_bench(memory_mb=4 * GENERIC_MEMORY_MB) as bench:
        await bench.pool.start()
        await bench.pool.filled()
        await first_runs(bench, 4)
        await bench.until(lambda: not bench.starting)
        assert (bench.idle(generic=False), bench.idle(generic=True)) == (4, 0)


# --- the state of the pool


async def test_the_state_of_the_pool_is_shown(open_bench):
    limits = {"sharing": Sharing.WORKER, "isolation": Isolation.SANDBOX, "most_containers": 50}
    async with open_bench(memory_mb=2048, **limits) as bench:
        bench.driver.group = Group(held_mb=20)
        await bench.pool.start()
        await bench.pool.filled()
        await bench.run("f")  # warm
        await bench.run("f")  # hot
        await bench.run("f", clean=False)  # hot, and the last one of its container
        await bench.removals()
        await bench.until(lambda: not bench.starting)
        async with bench.pool.acquire(bench.binding("go", runtime=Runtime.GO)):
            seen = bench.pool.overview()
    assert seen["memoryMb"] == {"limit": 2048, "charged": 23 + 128 + 23, "held": 46.0, "wanted": 0}
    assert seen["containers"] == {"limit": 50, "running": 2, "creating": 0, "removing": 0}
    python, go = seen["runtimes"]["python"], seen["runtimes"]["go"]
    assert (python["hot"], python["generic"], python["genericWanted"], python["busy"]) == (0, 1, 1, 0)
    assert python["starts"] == {"hot": 2, "warm": 1, "cold": 0}
    assert python["retired"] == {"unclean": 1}
    assert [(one["reason"], one["runs"]) for one in python["lastRetired"]] == [("unclean", 3)]
    assert (go["busy"], go["coldShare"]) == (1, 1.0)
    assert seen["runtimes"]["cpp"]["coldShare"] is None
    json.dumps(seen)


async def test_a_container_that_gets_another_function_is_counted_as_rebound(open_bench):
    async with open_bench(sharing=Sharing.WORKER, sizes=NO_POOL, isolation=Isolation.SANDBOX) as bench:
        await bench.pool.start()
        for function in ("f", "f", "g"):
            await bench.run(function)
        assert bench.pool.overview()["runtimes"]["python"]["rebound"] == 1
        assert bench.value("worker_containers_rebound_total", runtime="python") == 1


async def test_the_held_memory_is_unknown_without_counters(bench):
    assert bench.pool.overview()["memoryMb"]["held"] is None


# --- creation that fails


async def test_a_job_is_told_why_its_container_could_not_be_made(open_bench):
    async with open_bench(sizes=NO_POOL) as bench:
        await bench.pool.start()
        bench.driver.failures = ["no space left on device"]
        with pytest.raises(ContainerError, match="no space left on device"):
            await bench.run()
        assert (await bench.run()).start is Start.COLD


async def test_after_three_failures_the_breaker_opens_and_everyone_is_told(open_bench):
    async with open_bench() as bench:
        bench.driver.broken = "no such image"
        await bench.pool.start()
        await bench.pool.filled()
        assert bench.pool.unavailable_reason == "no such image"
        assert bench.health.document()["parts"]["containers"] == {
            "ok": False,
            "reason": "python: no such image",
        }
        assert bench.value("worker_pool_breaker_open") == 1
        assert bench.value("worker_container_creation_failures_total") == 3


async def test_a_runtime_whose_containers_cannot_be_made_does_not_stop_the_others(open_bench):
    async with open_bench() as bench:
        bench.driver.broken = "no such image"
        await bench.pool.start()
        await bench.pool.filled()
        bench.driver.broken = None
        assert (await bench.run(runtime=Runtime.GO)).start is Start.COLD
        with pytest.raises(ReturnToQueue, match="no such image"):
            await bench.run(runtime=Runtime.PYTHON)


async def test_a_bug_in_making_a_container_is_told_to_who_waits_for_it(open_bench, monkeypatch):
    async with open_bench(sizes=NO_POOL) as bench:
        await bench.pool.start()
        monkeypatch.setattr(FakeDriver, "_fail_on_demand", lambda _: 1 / 0)
        with pytest.raises(ContainerError, match="an error inside the worker: ZeroDivisionError"):
            await bench.run()
        assert bench.budget.committed_mb == 0


async def test_while_the_breaker_is_open_jobs_fail_at_once_with_the_reason(open_bench):
    async with open_bench() as bench:
        bench.driver.broken = "no such image"
        await bench.pool.start()
        await bench.pool.filled()
        bench.driver.may_create.clear()  # whoever tried to make one would wait for ever
        async with asyncio.timeout(WAIT_S):
            # Given back, and not counted as an attempt: another worker may be able to.
            with pytest.raises(ReturnToQueue, match="cannot be created: no such image") as interrupted:
                await bench.run()
    assert (
        interrupted.value.reason is ReturnReason.NO_CONTAINERS
    )  # it is the only runtime kept ready: intake stops


async def test_where_other_runtimes_have_containers_a_return_for_want_of_one_counts(open_bench):
    async with open_bench(sizes=NO_POOL | {Runtime.PYTHON: 1, Runtime.GO: 1}) as bench:
        breaker = bench.pool._availability._breakers[Runtime.GO]
        breaker.failures = 3
        breaker.reason = "no such image"
        breaker.open_until = 3600
        await bench.pool.start()
        await bench.pool.filled()
        with pytest.raises(ReturnToQueue, match="no such image") as interrupted:
            await bench.run(runtime=Runtime.GO)
        assert interrupted.value.reason is ReturnReason.NO_CONTAINERS_OF_RUNTIME
        assert bench.pool.unavailable_reason is None


async def test_nobody_keeps_waiting_when_the_breaker_opens(open_bench):
    async with open_bench(sizes=NO_POOL) as bench:
        bench.driver.broken = "no such image"
        await bench.pool.start()
        async with asyncio.timeout(WAIT_S):
            ended = await asyncio.gather(*(bench.run() for _ in range(10)), return_exceptions=True)
        assert all(isinstance(end, ContainerError) for end in ended)


async def test_one_success_closes_the_breaker(open_bench):
    async with open_bench() as bench:
        bench.driver.broken = "no such image"
        await bench.pool.start()
        await bench.pool.filled()
        bench.driver.broken = None
        bench.clock.now = 1
        bench.pool._retirement.sweep_once()
        await bench.until(lambda: bench.value("worker_pool_breaker_open") == 0)
        assert bench.pool.unavailable_reason is None
        assert bench.health.ready
        assert bench.idle() == 1


async def test_an_open_breaker_lets_one_be_tried_after_its_pause(open_bench):
    async with open_bench(sizes=NO_POOL | {Runtime.PYTHON: 5}) as bench:
        bench.driver.broken = "no such image"
        await bench.pool.start()
        await bench.pool.filled()
        await bench.until(lambda: not bench.starting)
        failures = bench.value("worker_container_creation_failures_total")
        bench.clock.now = 3600
        bench.pool._retirement.sweep_once()
        await bench.until(lambda: not bench.starting)
        assert bench.value("worker_container_creation_failures_total") == failures + 1


# --- the number of containers


async def test_any_number_of_functions_is_served_within_the_number_of_containers(
    open_bench, monkeypatch: pytest.MonkeyPatch
):
    create, numbers = FakeDriver.create, []

    async def counted(driver: FakeDriver, *arguments: Any) -> Any:
        numbers.append(len(driver.running) + driver.creating + 1)
        return await create(driver, *arguments)

    monkeypatch.setattr(FakeDriver, "create", counted)
    async with open_bench(most_containers=3, memory_mb=64 * GENERIC_MEMORY_MB) as bench:
        await bench.pool.start()
        await bench.pool.filled()
        for number in range(30):
            await bench.run(f"f{number}")
    assert max(numbers) == 3
    assert bench.value("worker_containers_retired_total", reason="evicted") >= 27


async def test_a_job_waits_for_the_end_of_another_where_there_may_be_no_more_containers(open_bench):
    async with open_bench(sizes=NO_POOL, most_containers=1) as bench:
        await bench.pool.start()
        async with bench.pool.acquire(bench.binding("f")) as acquired:
            waiting = asyncio.create_task(bench.run("g"))
            await bench.until(lambda: bench.starting > 0)
            for _ in range(20):
                await asyncio.sleep(0)
            assert (len(bench.driver.created), waiting.done()) == (1, False)
            acquired.clean = True
        async with asyncio.timeout(WAIT_S):
            await waiting
        assert len(bench.driver.created) == 2


async def test_refills_stay_within_the_number_of_containers(open_bench):
    async with open_bench(sizes=dict.fromkeys(Runtime, 2), most_containers=3) as bench:
        await bench.pool.start()
        await bench.pool.filled()
        bench.pool._retirement.sweep_once()
        await bench.until(lambda: not any(map(bench.pool._creation.starting, Runtime)))
        assert len(bench.driver.created) == 3


async def test_idle_containers_are_given_up_when_descriptors_are_short(open_bench):
    async with open_bench(sizes=NO_POOL) as bench:
        await bench.pool.start()
        for number in range(4):
            await bench.run(f"f{number}")
        bench.pool.evict(3)
        assert bench.idle() == 1
        await bench.removals()
        bench.pool.evict(3)
        assert bench.idle() == 0


# --- cancellation and the end


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelling_who_waits_for_a_container_leaks_nothing(open_bench):
    async with open_bench(sizes=NO_POOL) as bench:
        await bench.pool.start()
        bench.driver.may_create.clear()
        run = asyncio.create_task(bench.run())
        await bench.until(lambda: bench.waiting > 0)
        await cancelled(run)
        bench.driver.may_create.set()
        await bench.until(lambda: not bench.starting)
        assert not bench.waiting
        assert bench.budget.committed_mb == bench.counted_mb == GENERIC_MEMORY_MB * bench.idle()


async def test_cancelling_who_has_just_been_given_a_container_leaks_nothing(open_bench):
    async with open_bench(sizes=NO_POOL) as bench:
        await bench.pool.start()
        run = asyncio.create_task(bench.run())
        await bench.until(lambda: bench.waiting > 0)
        (waiter,) = bench.pool._context.waiting._waiters[Runtime.PYTHON]
        waiter.add_done_callback(lambda _: run.cancel())
        with pytest.raises(asyncio.CancelledError):
            await run
        await bench.removals()
        await bench.until(lambda: (bench.budget.committed_mb, bench.busy) == (0, 0))


async def test_cancelling_who_waits_for_room_leaks_nothing(open_bench):
    async with open_bench(memory_mb=400) as bench:
        await bench.pool.start()
        await bench.pool.filled()
        async with bench.pool.acquire(bench.binding("holder", memory_mb=272)):
            await bench.until(lambda: len(bench.ids) == 2)
            run = asyncio.create_task(bench.run("wants more", memory_mb=200))
            await bench.until(lambda: bench.budget.wanted_mb > 0)
            await cancelled(run)
            await bench.removals()
            assert bench.budget.wanted_mb == 0
            await bench.until(
                lambda: bench.budget.committed_mb == bench.counted_mb
            )  # a refill may be under way


async def test_cancelling_who_binds_leaks_nothing(open_bench):
    async with open_bench() as bench:
        bench.driver.script = Script(on_prepare=b"")  # the copy never ends
        await bench.pool.start()
        await bench.pool.filled()
        (container,) = bench.driver.running.values()
        run = asyncio.create_task(bench.run())
        async with asyncio.timeout(WAIT_S):
            await container.supervisor.prepared.wait()
        await cancelled(run)
        await bench.removals()
        assert bench.driver.removed == ["fake-0"]
        assert not bench.busy


async def test_closing_removes_everything_whatever_it_is_doing(home, tree):
    bench = Bench(home, tree, sizes=ONE_PYTHON | {Runtime.GO: 1})
    await bench.pool.start()
    await bench.pool.filled()
    async with AsyncExitStack() as held:
        await held.enter_async_context(bench.pool.acquire(bench.binding()))
        await bench.until(lambda: bench.idle(generic=True) == 1)
        bench.driver.may_remove.clear()
        bench.driver.may_create.clear()
        await bench.run(clean=False)  # is being removed
        await bench.until(lambda: bench.driver.creating > 0)  # is being made
        waiting = asyncio.create_task(bench.run("waits"))
        await bench.until(lambda: bench.waiting > 0)
        closing = asyncio.create_task(bench.pool.close())
        with pytest.raises(ContainerError, match="closed"):
            await waiting
        bench.driver.may_remove.set()
        await closing
        assert (bench.driver.running, bench.driver.creating, bench.slots) == ({}, 0, [])
    assert bench.budget.committed_mb == 0
    assert len(bench.driver.removed) == len(bench.driver.created)


async def test_closing_twice_is_as_good_as_once(home, tree):
    bench = Bench(home, tree)
    await bench.pool.start()
    await bench.pool.close()
    await bench.pool.close()
    assert bench.driver.running == {}


async def test_a_closed_pool_leases_nothing(home, tree):
    bench = Bench(home, tree)
    await bench.pool.close()
    with pytest.raises(ContainerError, match="closed"):
        await bench.run()


# --- the engine goes away


def seems_well(bench: Bench) -> bool:
    return (
        bool(bench.health.document()["parts"]["containers"]["ok"]) and bench.pool.unavailable_reason is None
    )


async def test_while_the_engine_is_away_jobs_that_want_a_container_go_back_uncounted(open_bench):
    async with open_bench() as bench:
        await bench.pool.start()
        await bench.pool.filled()
        bench.driver.may_create.clear()
        async with bench.pool.acquire(bench.binding("f")) as acquired:
            waits = asyncio.create_task(bench.run("g"))  # for one that is being made
            await bench.until(lambda: bench.driver.creating == 1)
            bench.driver.away = "Docker cannot be reached"
            bench.driver.may_create.set()
            with pytest.raises(ReturnToQueue, match="Docker cannot be reached"):
                await asyncio.wait_for(waits, WAIT_S)
            with pytest.raises(ReturnToQueue, match="systemctl status docker"):
                await bench.run("h")
            assert bench.pool.unavailable_reason is not None
            assert not seems_well(bench)
            bench.driver.away = None
            acquired.clean = True
        await bench.pool._watch.check()


async def test_when_the_engine_is_back_the_pool_is_filled_at_once_whatever_failed_before(open_bench):
    async with open_bench(sizes=NO_POOL | {Runtime.PYTHON: 2}) as bench:
        bench.driver.broken = "no space left on device"
        await bench.pool.start()
        await bench.until(lambda: bench.pool.unavailable_reason is not None)
        bench.driver.away, bench.driver.broken = "Docker cannot be reached", None
        await bench.pool._watch.check()
        assert bench.pool.unavailable_reason == "Docker cannot be reached; systemctl status docker"
        bench.driver.away = None
        await bench.pool._watch.check()  # the clock stands still: no breaker's pause has gone by
        await bench.until(lambda: bench.idle() == 2)
        await bench.pool.filled()
        assert seems_well(bench)


async def test_a_creation_that_fails_because_the_engine_is_away_opens_no_breaker(open_bench):
    async with open_bench(sizes=ONE_PYTHON) as bench:
        bench.driver.away = "Docker cannot be reached"
        await bench.pool.start()
        await bench.until(lambda: bench.pool.unavailable_reason is not None)
        assert bench.value("worker_container_creation_failures_total") == 0
        assert not bench.pool._availability._breakers[Runtime.PYTHON].failures
        bench.driver.away = None
        await bench.pool._watch.check()
        await bench.until(lambda: bench.idle() == 1)


async def test_the_end_of_the_events_is_reason_enough_to_ask_for_the_engine(bench):
    bench.driver.away = "Docker cannot be reached"
    bench.driver.end_events()
    await bench.until(lambda: not seems_well(bench))
    bench.driver.away = None
    bench.pool._watch.check_soon()
    await bench.until(lambda: seems_well(bench))


async def test_an_engine_that_hangs_is_away(open_bench, monkeypatch):
    monkeypatch.setattr(engine_watch, "_PING_TIMEOUT_S", 0.01)
    async with open_bench(sizes=NO_POOL) as bench:
        await bench.pool.start()
        await bench.pool.filled()
        bench.driver.answers.clear()
        bench.pool._watch.check_soon()
        await bench.until(lambda: bench.pool.unavailable_reason is not None)
        assert "has not answered" in bench.health.document()["parts"]["containers"]["reason"]
        bench.driver.answers.set()
        bench.pool._watch.check_soon()
        await bench.until(lambda: seems_well(bench))


async def test_what_could_not_be_removed_while_the_engine_was_away_is_removed_afterwards(open_bench):
    async with open_bench(sizes=NO_POOL) as bench:
        await bench.pool.start()
        await bench.pool.filled()
        async with bench.pool.acquire(bench.binding()):
            bench.driver.away = "Docker cannot be reached"
        await bench.removals()
        assert list(bench.driver.running) == ["fake-0"]
        bench.driver.away = None
        bench.pool._watch.check_soon()
        await bench.until(lambda: bench.driver.removed == ["fake-0"])


async def test_closing_ends_though_the_engine_removes_nothing(home, tree, monkeypatch):
    monkeypatch.setattr(pool_module, "_CLOSE_S", 0.01)
    bench = Bench(home, tree)
    await bench.pool.start()
    await bench.pool.filled()
    bench.driver.may_remove.clear()
    async with asyncio.timeout(WAIT_S):
        await bench.pool.close()
    assert list(bench.driver.running) == ["fake-0"]  # the next worker finds it
    bench.driver.may_remove.set()
    await bench.driver.close()
    for directory in (home.path / "slots").iterdir():
        shutil.rmtree(directory)


# --- what a container holds beside a run


class Group(ControlGroup):
    """One that holds a fixed amount and remembers its limit."""

    def __init__(self, held_mb: int) -> None:
        self.held_mb, self.limit_bytes = held_mb, 0

    def set_memory_limit(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes

    def memory_limit(self) -> int:
        return self.limit_bytes

    def set_cpus(self, share: float, most: float) -> None: ...

    def usage_bytes(self) -> int:
        return self.held_mb * MIB

    def page_cache_bytes(self) -> int:
        return 0

    def peak_bytes(self) -> int:
        return 0

    def reset_peak(self) -> bool:
        return True

    def oom_kills(self) -> int:
        return 0

    def processes(self) -> list[int]:
        raise NotImplementedError

    def task_count(self) -> int:
        raise NotImplementedError

    def refused_processes(self) -> int:
        return 0


IDLE_40_MB = charges.idle_mb(40 * MIB)


async def test_what_a_container_holds_beside_a_run_is_on_top_of_its_limit_and_counts(open_bench):
    async with open_bench(sizes=NO_POOL) as bench:
        bench.driver.group = group = Group(held_mb=40)
        await bench.pool.start()
        await bench.run(memory_mb=200)
        assert group.limit_bytes == (200 + 40) * MIB
        assert bench.budget.committed_mb == bench.counted_mb == IDLE_40_MB
        async with bench.pool.acquire(bench.binding(memory_mb=200)) as acquired:
            assert bench.budget.committed_mb == bench.counted_mb == 200 + IDLE_40_MB
            acquired.clean = True
        assert bench.budget.committed_mb == IDLE_40_MB


async def test_a_small_budget_keeps_the_containers_of_many_functions(open_bench):
    async with open_bench(sizes=NO_POOL, memory_mb=1024) as bench:
        bench.driver.group = Group(held_mb=15)
        await bench.pool.start()
        functions = [f"f{number}" for number in range(40)]
        for function in functions:
            await bench.run(function)
        starts = [(await bench.run(function)).start for function in functions]
        assert starts == [Start.HOT] * len(functions)


async def test_a_hot_run_begins_when_idle_containers_have_made_room_for_it(open_bench):
    async with open_bench(sizes=NO_POOL, memory_mb=600) as bench:
        bench.driver.group = Group(held_mb=37)
        await bench.pool.start()
        idle = [await bench.run(f"idle-{number}") for number in range(9)]  # 40 MiB each
        bench.clock.now = 10
        large = await bench.run("large", memory_mb=190)
        bench.clock.now = 20
        async with bench.pool.acquire(bench.binding("large", memory_mb=190)) as again:
            assert again.start is Start.HOT
            assert again.container is large.container
            async with bench.pool.acquire(bench.binding("large", memory_mb=190)) as second:
                assert bench.budget.committed_mb <= 600
                second.clean = again.clean = True
        assert set(bench.driver.removed) < {acquired.container.id for acquired in idle}


async def test_an_idle_container_that_grows_counts_with_its_memory_and_is_then_removed(open_bench):
    async with open_bench(sizes=NO_POOL) as bench:
        bench.driver.group = group = Group(held_mb=20)
        await bench.pool.start()
        await bench.run()
        group.held_mb = 27
        bench.pool._retirement.sweep_once()
        assert bench.budget.committed_mb == bench.counted_mb == charges.idle_mb(27 * MIB)
        group.held_mb = 29
        bench.pool._retirement.sweep_once()
        assert bench.idle() == 0
    assert bench.value("worker_containers_retired_total", reason="grown") == 1


async def test_containers_that_grow_beyond_the_budget_are_evicted_before_the_next_job(open_bench):
    async with open_bench(sizes=NO_POOL, memory_mb=200) as bench:
        bench.driver.group = group = Group(held_mb=17)
        await bench.pool.start()
        for number in range(4):
            await bench.run(f"f{number}", memory_mb=16)
        assert bench.budget.committed_mb == 80
        group.held_mb = 24
        bench.budget.limit_mb = 100
        bench.pool._retirement.sweep_once()
        assert bench.idle() == 3
        bench.budget.limit_mb = 200


async def test_jobs_whose_containers_hold_more_than_the_budget_run_one_after_another(open_bench):
    """Each of them has a container and waits for memory. None could go on if all waited for the others."""
    async with open_bench(sizes=NO_POOL, memory_mb=128) as bench:
        bench.driver.group = Group(held_mb=15)
        await bench.pool.start()
        jobs = [bench.run(f"f{number}", memory_mb=16) for number in range(8)]
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*jobs)


async def test_the_copy_of_the_code_counts_before_it_is_made(open_bench):
    """Idle containers make room for it, as for the job's own memory."""
    async with open_bench(sizes=NO_POOL, memory_mb=400) as bench:
        bench.driver.group = Group(held_mb=10)
        await bench.pool.start()
        await bench.run("idle", memory_mb=300)
        async with bench.pool.acquire(
            bench.binding("large", memory_mb=128, tree_bytes=250 * MIB)
        ) as acquired:
            await bench.removals()
            assert bench.driver.removed == ["fake-0"]
            acquired.clean = True
        assert bench.budget.committed_mb == bench.counted_mb == charges.idle_mb(10 * MIB)


async def test_code_that_does_not_fit_beside_its_job_still_runs(open_bench):
    async with open_bench(sizes=NO_POOL, memory_mb=256) as bench:
        await bench.pool.start()
        async with asyncio.timeout(WAIT_S):
            await bench.run("large", memory_mb=200, tree_bytes=250 * MIB)
            await bench.run("small")


async def test_a_job_as_large_as_the_whole_budget_still_runs_though_its_container_holds_more(open_bench):
    async with open_bench(sizes=NO_POOL, memory_mb=512) as bench:
        bench.driver.group = Group(held_mb=40)
        await bench.pool.start()
        async with asyncio.timeout(WAIT_S):
            await bench.run("small")
            await bench.run("large", memory_mb=512)
            await bench.run("small")


# --- whom a container may serve


async def test_a_container_for_one_run_is_thrown_away_after_it(open_bench):
    async with open_bench(sharing=Sharing.NEVER) as bench:
        await bench.pool.start()
        await bench.pool.filled()
        first = await bench.run()
        second = await bench.run()
        assert not first.reuse
        assert first.container is not second.container
        await bench.removals()
        assert bench.driver.removed == ["fake-0", "fake-1"]


async def test_a_workers_container_serves_its_functions_one_after_another(open_bench):
    async with open_bench(sharing=Sharing.WORKER, sizes=NO_POOL, isolation=Isolation.SANDBOX) as bench:
        await bench.pool.start()
        first, second, again = await bench.run("f"), await bench.run("g"), await bench.run("g")
        assert [acquired.start for acquired in (first, second, again)] == [Start.COLD, Start.WARM, Start.HOT]
        assert first.container is second.container is again.container


async def test_a_container_of_all_functions_has_only_the_code_and_limit_of_its_present_function(
    open_bench, tmp_path
):
    other, byte_code, program = (tmp_path / name for name in ("other", "byte_code", "program"))
    for path in (other, byte_code, program):
        path.write_text(path.name)
    async with open_bench(sharing=Sharing.WORKER, sizes=NO_POOL, isolation=Isolation.SANDBOX) as bench:
        await bench.pool.start()
        await bench.run("f", program=program, byte_code=byte_code)
        acquired = await bench.run("g", tree=other, memory_mb=256)
        directory = acquired.container.work_directory.path
        assert (directory / "code").read_text() == "other"
        assert not (directory / "byte_code").exists()
        assert not (directory / "program").exists()
        assert bench.counted_mb == bench.budget.committed_mb == 256


async def test_a_tenants_container_serves_functions_of_one_owner_only(open_bench):
    alice, bob = Owner(OwnerSource.FIELD, "alice"), Owner(OwnerSource.FIELD, "bob")
    async with open_bench(sharing=Sharing.TENANT, sizes=NO_POOL, isolation=Isolation.SANDBOX) as bench:
        await bench.pool.start()
        first = await bench.run("f", owner=alice)
        same_code = await bench.run("f", owner=bob)
        unknown = await bench.run("f")
        other = await bench.run("g", owner=alice)
        back = await bench.run("f", owner=bob)
    assert [run.start for run in (first, same_code, unknown)] == [Start.COLD] * 3
    assert (other.container, other.start) == (first.container, Start.WARM)
    assert (back.container, back.start) == (same_code.container, Start.HOT)


async def test_a_workers_container_is_not_built_in(open_bench):
    async with open_bench(sharing=Sharing.WORKER, sizes=NO_POOL, isolation=Isolation.SANDBOX) as bench:
        await bench.pool.start()
        run = await bench.run("f")
        build = await bench.run("f", purpose="build")
        assert build.container is not run.container


async def test_a_container_that_has_lost_its_isolation_is_not_used(open_bench):
    async with open_bench(sizes=NO_POOL, isolation=Isolation.SANDBOX) as bench:
        bench.driver.script = Script(why_not_sandboxed="the profile is gone")
        await bench.pool.start()
        with pytest.raises(ContainerError, match=r"isolation level is lower.*the profile is gone"):
            await bench.run()
        assert bench.driver.removed == ["fake-0"]


# --- byte code


async def test_a_container_is_bound_again_when_its_function_has_byte_code(bench, tmp_path):
    byte_code = tmp_path / "byte code"
    byte_code.write_text("byte code")
    runs = [await bench.run(byte_code=found) for found in (None, byte_code, byte_code, None)]
    assert [run.start for run in runs] == [Start.WARM, Start.WARM, Start.HOT, Start.HOT]
    assert len({run.container.id for run in runs}) == 1
    directory = runs[0].container.work_directory.path
    assert (directory / "code").samefile(bench.tree)
    assert (directory / "byte_code").samefile(byte_code)


async def test_a_compilation_has_a_container_of_its_own_which_serves_nothing_else(bench):
    generic = bench.ids
    compiled = await bench.run(purpose="compile")
    assert compiled.container.id not in generic
    assert not compiled.reuse
    assert (await bench.run()).container.id in generic


async def test_a_compilation_has_room_unless_jobs_or_generic_containers_have_it(open_bench):
    async with open_bench(memory_mb=3 * GENERIC_MEMORY_MB) as bench:
        await bench.pool.start()
        await bench.pool.filled()
        fits, large = bench.binding(purpose="compile"), bench.binding(purpose="compile", memory_mb=256)
        too_large = bench.binding(purpose="compile", memory_mb=384)
        assert [bench.pool.has_room_for(each) for each in (fits, large, too_large)] == [True, True, False]
        async with bench.pool.acquire(bench.binding()) as acquired:
            await bench.pool.filled()
            acquired.clean = True
            assert [bench.pool.has_room_for(each) for each in (fits, large)] == [True, False]
        assert bench.pool.has_room_for(large)  # the bound container is idle now


# --- recycling

ROOM_FOR_ONE_MB = GENERIC_MEMORY_MB + charges.idle_mb(15 * MIB) - 1
"""While one container is idle, another one cannot be created."""


@pytest.fixture
def open_full(open_bench: Callable[..., Any]) -> Callable[..., Any]:
    """Opens a pool that recycles and has room for only one creation. Its containers hold 15 MiB."""

    @asynccontextmanager
    async def open_full(**changes: Any) -> AsyncIterator[Bench]:
        fields = {"sizes": NO_POOL, "memory_mb": ROOM_FOR_ONE_MB, "recycles": True} | changes
        async with open_bench(**fields) as bench:
            bench.driver.recyclable = True
            bench.driver.group = Group(held_mb=15)
            await bench.pool.start()
            yield bench

    return open_full


async def test_a_job_gets_a_recycled_container_if_a_new_one_has_no_room(open_full):
    async with open_full() as bench:
        first = await bench.run("a")
        second = await bench.run("b")
        assert (first.start, second.start) == (Start.COLD, Start.COLD)
        assert first.container is second.container
        assert bench.driver.recycled == [first.container.id]
        assert (len(bench.driver.created), bench.driver.removed) == (1, [])
        assert (await bench.run("b")).start is Start.HOT
        assert bench.value("worker_container_recycling_seconds_count", runtime="python") == 1
        state = bench.pool.overview()["runtimes"]["python"]
        assert (state["recycled"], state["notRecycled"], state["retired"]) == (1, {}, {})
        assert bench.budget.committed_mb == bench.counted_mb == charges.idle_mb(15 * MIB)


async def test_none_is_recycled_while_there_is_room(open_full):
    async with open_full(memory_mb=1024) as bench:
        for function in "abc":
            await bench.run(function)
        assert (len(bench.driver.created), bench.driver.recycled) == (3, [])


async def test_none_is_recycled_for_the_memory_of_a_build_that_has_ended(open_full):
    async with open_full(memory_mb=1024) as bench:
        await bench.run("a", purpose="build", memory_mb=1024)
        for function in "abc":
            await bench.run(function)
        assert (len(bench.driver.created), bench.driver.recycled) == (4, [])


@pytest.mark.parametrize("reason", ["the setting", "the container"])
async def test_without_recycling_a_container_is_evicted(open_full, reason):
    async with open_full(recycles=reason != "the setting") as bench:
        bench.driver.recyclable = reason != "the container"
        first, second = await bench.run("a"), await bench.run("b")
        await bench.removals()
        assert (bench.driver.recycled, bench.driver.removed) == ([], [first.container.id])
        assert second.container is not first.container


@pytest.mark.parametrize("failure", RecyclingFailure)
async def test_a_container_with_residue_is_removed_and_the_job_gets_a_new_one(open_full, failure):
    async with open_full() as bench:
        first = await bench.run("a")
        bench.driver.residues.append(failure)
        second = await bench.run("b")
        await bench.removals()
        assert (second.start, second.container.id) == (Start.COLD, bench.ids[0])
        assert bench.driver.removed == [first.container.id]
        assert bench.value("worker_container_recycling_failures_total", failure=failure) == 1
        assert bench.value("worker_containers_retired_total", reason="recycling") == 1
        assert bench.pool.overview()["runtimes"]["python"]["notRecycled"] == {failure: 1}


async def test_a_container_that_has_grown_while_it_was_recycled_is_removed(open_full):
    async with open_full() as bench:
        first = await bench.run("a")
        bench.driver.may_recycle.clear()
        job = asyncio.create_task(bench.run("b"))
        await bench.until(lambda: bench.starting == 1)
        bench.driver.group.held_mb = 15 + charges.LEFTOVER_BYTES // MIB + 1
        bench.driver.may_recycle.set()
        second = await job
        await bench.removals()
        assert bench.driver.removed == [first.container.id]
        assert second.container is not first.container
        assert bench.value("worker_container_recycling_failures_total", failure="memory") == 1


async def test_the_next_generic_container_is_recycled_when_a_job_has_taken_one(open_full):
    """While a job runs, there is no room for a creation."""
    async with open_full(
        sizes=ONE_PYTHON, memory_mb=GENERIC_MEMORY_MB + 3 * charges.idle_mb(15 * MIB)
    ) as bench:
        await bench.pool.filled()
        await bench.run("a")
        bench.pool._refill()
        starts = []
        for function in "bcdef":
            await bench.until(lambda: bench.idle(generic=True) == 1)
            starts.append((await bench.run(function)).start)
        assert starts == [Start.WARM] * 5
        assert (len(bench.driver.created), bench.driver.removed) == (2, [])
        assert len(bench.driver.recycled) >= 4


async def test_no_bound_container_is_recycled_for_the_warm_pool_if_no_job_has_needed_it(open_full):
    async with open_full() as bench:
        await bench.run("a")
        bench.clock.now = MEMORY_S + 1
        bench.pool._retirement.sweep_once()
        assert (bench.starting, bench.driver.recycled) == (0, [])


async def test_an_unused_container_is_recycled_if_a_generic_one_is_wanted(open_full):
    async with open_full(sizes=ONE_PYTHON) as bench:
        await bench.pool.filled()
        first = await bench.run("a")
        await bench.until(lambda: bench.starting == 0)
        bench.clock.now = bench.policy.idle_s + 1
        bench.pool._retirement.sweep_once()
        await bench.until(lambda: bench.idle(generic=True) == 1)
        assert bench.driver.recycled == bench.ids == [first.container.id]


async def test_an_unused_container_is_retired_if_no_generic_one_is_wanted(open_full):
    async with open_full(memory_mb=1024) as bench:
        first = await bench.run("a")
        bench.clock.now = bench.policy.idle_s + 1
        bench.pool._retirement.sweep_once()
        await bench.removals()
        assert (bench.driver.recycled, bench.driver.removed) == ([], [first.container.id])


async def test_no_other_runtime_gets_the_container(open_full):
    async with open_full() as bench:
        first = await bench.run("a")
        second = await bench.run("b", runtime=Runtime.GO)
        await bench.removals()
        assert (bench.driver.recycled, bench.driver.removed) == ([], [first.container.id])
        assert second.container.spec.runtime is Runtime.GO


async def test_no_job_gets_a_container_while_it_is_recycled(open_full):
    async with open_full() as bench:
        await bench.run("a")
        bench.driver.may_recycle.clear()
        other = asyncio.create_task(bench.run("b"))
        await bench.until(lambda: bench.starting == 1 and not bench.idle())
        same = asyncio.create_task(bench.run("a"))
        await bench.until(lambda: bench.waiting == 2)
        bench.driver.may_recycle.set()
        assert (await other).start is Start.COLD
        assert (await same).start is Start.COLD


async def test_a_container_that_dies_while_it_is_recycled_is_removed(open_full):
    async with open_full() as bench:
        first = await bench.run("a")
        bench.driver.may_recycle.clear()
        job = asyncio.create_task(bench.run("b"))
        await bench.until(lambda: bench.starting == 1 and not bench.idle())
        bench.driver.kill(first.container.id)
        await asyncio.gather(bench.driver.running[first.container.id].serving)
        bench.driver.may_recycle.set()
        assert (await job).container is not first.container
        assert bench.value("worker_container_recycling_failures_total", failure="error") == 1


async def test_a_job_that_is_cancelled_while_it_waits_leaves_a_generic_container(open_full):
    async with open_full() as bench:
        first = await bench.run("a")
        bench.driver.may_recycle.clear()
        job = asyncio.create_task(bench.run("b"))
        await bench.until(lambda: bench.starting == 1 and not bench.idle())
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
        bench.driver.may_recycle.set()
        await bench.until(lambda: bench.idle(generic=True) == 1)
        assert bench.ids == [first.container.id]


async def test_a_pool_that_closes_removes_containers_that_are_being_recycled(open_full):
    async with open_full() as bench:
        await bench.run("a")
        bench.driver.may_recycle.clear()
        job = asyncio.create_task(bench.run("b"))
        await bench.until(lambda: bench.starting == 1 and not bench.idle())
        await bench.pool.close()
        assert isinstance((await asyncio.gather(job, return_exceptions=True))[0], PlatformError)
        assert bench.driver.running == {}
