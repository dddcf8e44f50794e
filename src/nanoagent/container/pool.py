"""The warm pool: containers that are created in advance, and are bound to a function by their first job.

A container's states (`policy.ContainerState`, transitions in `policy.NEXT`)::

                RECYCLING
                 ▲     │
                 │     ▼
    created ─► IDLE ◄──► BUSY ──► DEAD
                │         │         │
                └─────────┴─────────┴──► RETIRED

A container is generic until its first job binds it. Then it serves one function version (`Binding.key`:
function ID, code digest, runtime and memory limit), one job at a time. With `CONTAINER_SHARING=worker`, it
may later be bound to another function version. If a run leaves something behind, the container is retired.
With `CONTAINER_RECYCLING=auto`, an idle container that would be evicted for a job may become generic again
(RECYCLING).

The parts of the pool, and the state that each of them owns:

* `Pool`: the containers of running jobs, and the pool's tasks.
* `Inventory`: the lists of the containers. Only the inventory changes their states.
* `Budget`: the memory and the number of the containers (`charges`: how much memory a container takes).
* `WaitingJobs`: the jobs that wait for a container to be created.
* `Creation`: the creations under way. Refills keep generic containers of each runtime ready, so that most
  jobs do not wait for a creation (`demand`: how many). A job that finds no container waits for the next one
  (cold start).
* `Recycler`: chooses containers to recycle, and makes them generic again.
* `Binder`: puts the code, the program and the limits of a function version into a container.
* `Retirement`: the removals under way, and the sweep. Eviction makes room for jobs: it retires the least
  valuable idle containers (`eviction`, `valuation`).
* `Availability`: a circuit breaker per runtime, and whether Docker is available. A circuit breaker opens when
  creations keep failing. Then jobs that need a new container of the runtime return to the queue at once, and
  readiness and metrics report the reason. After a pause, one creation is tried. The pauses grow.
* `EngineWatch`: the checks of Docker, and the deaths of containers. While Docker is unavailable, the worker
  takes no jobs, jobs that wait for a container return to the queue, and failed creations do not count.
* `Strays`: whether stray containers may exist. It removes them when Docker is available.

`pool_context` has the collaborators and the state that the parts share.

Read in this order: `policy`, `inventory`, `charges`, `budget`, this module, `creation` with `waiting`,
`demand`, `recycler` and `availability`, `binder`, `retirement`, `engine_watch` with `strays`.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nanoagent.common.units import MIB
from nanoagent.container import charges
from nanoagent.container.availability import Availability
from nanoagent.container.binder import Binder
from nanoagent.container.budget import Budget
from nanoagent.container.creation import Creation
from nanoagent.container.demand import WantedGeneric
from nanoagent.container.engine_watch import EngineWatch
from nanoagent.container.inventory import Inventory
from nanoagent.container.overview import overview
from nanoagent.container.policy import ContainerState, choose_idle
from nanoagent.container.pool_context import Changes, PoolContext
from nanoagent.container.recycler import Recycler
from nanoagent.container.retirement import Retirement
from nanoagent.container.strays import Strays
from nanoagent.container.totals import Totals
from nanoagent.container.valuation import Valuation
from nanoagent.container.waiting import WaitingJobs
from nanoagent.host.background import Background, TaskName
from nanoagent.model.errors import ContainerNotMade
from nanoagent.model.job import Runtime
from nanoagent.model.result import Isolation, Start

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from nanoagent.container.base import Driver, RunningContainer
    from nanoagent.container.policy import Binding, PooledContainer, PoolPolicy
    from nanoagent.container.worker_home import WorkerHome
    from nanoagent.telemetry.metrics import Metrics, PoolMemory, PoolState
    from nanoagent.telemetry.status import Health

_CLOSE_S: Final = 20.0  # containers that remain after that time are removed by the next worker


@dataclass(slots=True)
class AcquiredContainer:
    """A container that a job has acquired for one run.

    Attributes:
        container: The container.
        start: The kind of start: hot, warm or cold.
        reuse: Whether the pool keeps the container if the run leaves nothing behind.
        isolation: The isolation between this run and any other run.
        clean: Whether the run left nothing behind. The job sets this; if it does not, the container is
            retired.
    """

    container: RunningContainer
    start: Start
    reuse: bool
    isolation: Isolation = Isolation.SHARED
    clean: bool = False


class Pool:
    """Lends containers to jobs; see the docstring of the module.

    Args:
        driver: Creates and removes containers.
        home: The worker's folder, with the work directories of containers.
        policy: The settings.
        metrics: Counts starts, retirements and states.
        health: The readiness to which the pool reports.
        background: Starts the pool's tasks.
        clock: Returns monotonic seconds.
    """

    def __init__(  # noqa: PLR0913 - its collaborators
        self,
        driver: Driver,
        home: WorkerHome,
        policy: PoolPolicy,
        metrics: Metrics,
        health: Health,
        *,
        background: Background | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        inventory = Inventory()
        self._context = context = PoolContext(
            driver=driver,
            home=home,
            policy=policy,
            metrics=metrics,
            background=background or Background(),
            clock=clock,
            inventory=inventory,
            budget=Budget(policy.memory_mb, policy.most_containers),
            waiting=WaitingJobs(),
            totals=Totals(),
            valuation=Valuation(inventory, clock),
            wanted=WantedGeneric(policy.sizes, clock),
            changes=Changes(),
            strays=Strays(driver, home),
        )
        self._policy = policy
        self._inventory = inventory
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._availability = Availability(context, health)
        self._retirement = Retirement(context, self._refill, self._recycle_unused)
        self._watch = EngineWatch(context, self._availability, self._retirement, self._refill)
        recycler = Recycler(context, self._retirement)
        self._creation = Creation(context, self._availability, self._watch, self._retirement, recycler)
        self._binder = Binder(context)
        metrics.containers.watch_pool(self._count, self._inventory.generic, self._memory_bytes)

    # --- start and end

    async def start(self) -> None:
        """Begin to fill the pool, to retire old or unused containers, and to watch Docker."""
        keep = self._context.background.keep
        self._tasks = (
            keep(TaskName.POOL_SWEEP, self._retirement.sweep),
            keep(TaskName.ENGINE_EVENTS, self._watch.follow_events),
            keep(TaskName.ENGINE_CHECK, self._watch.check_regularly),
        )
        self._refill()

    async def filled(self) -> None:
        """Wait until the pool has been filled, as far as that is possible.

        It does not wait for a runtime whose creations keep failing, or whose containers do not fit into the
        budget.

        Then readiness may report success (`Availability.pool_filled`).
        """
        while any(self._creation.is_filling(runtime) for runtime in Runtime):
            await self._context.changes.wait()
        self._availability.pool_filled()

    async def close(self) -> None:
        """Remove all containers. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await _done_within(_CLOSE_S, [*self._tasks, *self._creation.stop()])
        self._context.waiting.fail_all(lambda: ContainerNotMade("the pool is closed"))
        for pooled in self._inventory.all():
            self._retirement.retire(pooled, "closing")
        await _done_within(_CLOSE_S, self._retirement.removals)

    # --- containers for jobs

    @asynccontextmanager
    async def acquire(self, binding: Binding) -> AsyncIterator[AcquiredContainer]:
        """Acquire a container that has the code, and release it when the block ends.

        The caller sets `clean` if the run left nothing behind. Otherwise the container is retired.

        Args:
            binding: The function version, with its limits.

        Raises:
            ContainerNotMade: A container could not be created.
            ContainerError: A container could not be bound.
            PlatformError: The code could not be put into the work directory.
            ReturnToQueue: Docker is unavailable, or the circuit breaker of the runtime is open.
        """
        context = self._context
        context.valuation.begin_job(binding)
        try:
            pooled, start = await self._take(binding)
            acquired = AcquiredContainer(
                pooled.container, start, self._would_keep(pooled, binding), self.isolation_between_runs
            )
            try:
                if start is not Start.HOT:
                    self._note_rebind(pooled, binding)
                    await self._binder.bind(pooled, binding)
                context.metrics.containers.started(binding.runtime, start)
                context.totals.starts[binding.runtime][start] += 1
                yield acquired
            finally:
                self._release(pooled, acquired)
        finally:
            context.valuation.end_job(binding)

    async def _take(self, binding: Binding) -> tuple[PooledContainer, Start]:
        """Take an idle container, or wait for a new one."""
        pooled = choose_idle(binding, self._inventory.idle(binding.runtime), self._policy.sharing)
        if (pooled is None or pooled.is_generic) and binding.purpose != "compile":
            self._context.wanted.record_taken(binding.runtime)
        if pooled is None:
            pooled = await self._creation.next_container(binding.runtime)
            await self._lend_memory(pooled, _needed_mb(pooled, binding), binding)
            return pooled, Start.COLD
        self._inventory.take(pooled)
        if pooled.serves(binding.key):
            await self._lend_memory(pooled, pooled.busy_mb, binding)
            return pooled, Start.HOT
        if pooled.is_generic:
            self._refill()
        await self._lend_memory(pooled, _needed_mb(pooled, binding), binding)
        return pooled, Start.WARM

    async def _lend_memory(self, pooled: PooledContainer, needed_mb: int, binding: Binding) -> None:
        """Wait until the memory that a job needs is free, and give it to the container."""
        budget = self._context.budget
        memory_mb = min(needed_mb, budget.limit_mb)
        if budget.committed_mb + memory_mb - pooled.memory_mb > budget.limit_mb:
            try:
                await self._retirement.make_room(memory_mb - pooled.memory_mb)
            except BaseException:
                self._retirement.retire(pooled, "unclean")
                raise
        budget.lend(pooled, memory_mb, is_run=binding.purpose == "run")

    def _note_rebind(self, pooled: PooledContainer, binding: Binding) -> None:
        """Count a container that is bound to another function than before."""
        if pooled.key is not None and not pooled.key.is_like(binding.key):
            self._context.totals.rebinds[binding.runtime] += 1
            self._context.metrics.containers.rebound(binding.runtime)

    def _would_keep(self, pooled: PooledContainer, binding: Binding) -> bool:
        kept = self._policy.keeps_containers and pooled.runs + 1 < self._policy.max_runs
        return binding.purpose == "run" and kept

    def _release(self, pooled: PooledContainer, acquired: AcquiredContainer) -> None:
        """Make the container of a job idle again, or retire it."""
        pooled.runs += 1
        pooled.used_at = self._context.clock()
        is_dead = pooled.state is ContainerState.DEAD
        if not acquired.clean:
            self._retirement.retire(pooled, "died" if is_dead else "unclean")
        elif not acquired.reuse or self._creation.is_stopped:
            self._retirement.retire(pooled, "runs")
        elif is_dead:
            self._retirement.retire(pooled, "died")
        else:
            self._context.budget.take_back(pooled, charges.of_idle(pooled))
            self._inventory.put_back(pooled)
        self._context.changes.notify()

    def has_room_for(self, binding: Binding) -> bool:
        """Whether a new container for a binding fits now, and no job waits for memory.

        Containers that are bound and idle may be evicted for it, but not those that are generic.
        """
        shortage = self._context.budget.shortage(binding.needed_mb, containers=1)
        if self._context.budget.wanted_mb > 0:
            return False
        if shortage is None:
            return True
        bound = [pooled.memory_mb for pooled in self._inventory.all_idle() if not pooled.is_generic]
        return sum(bound) >= shortage.memory_mb and len(bound) >= shortage.containers

    def evict(self, number: int) -> None:
        """Evict at most `number` idle containers."""
        self._retirement.evict(0, number)

    def _refill(self) -> None:
        self._creation.refill()

    def _recycle_unused(self, pooled: PooledContainer) -> bool:
        return self._creation.recycle_unused(pooled)

    # --- questions

    @property
    def isolation_between_runs(self) -> Isolation:
        """The isolation between one run and the next."""
        return self._policy.isolation_between_runs

    @property
    def unavailable_reason(self) -> str | None:
        """Why the worker takes no jobs at present; see `Availability.unavailable_reason`."""
        return self._availability.unavailable_reason

    def overview(self) -> dict[str, Any]:
        """Return the state of the pool as a JSON document (`overview`)."""
        return overview(self._context, {runtime: self._creation.starting(runtime) for runtime in Runtime})

    def _memory_bytes(self, kind: PoolMemory) -> int:
        """Return an amount of memory, for the metrics."""
        budget = self._context.budget
        return (budget.limit_mb if kind == "limit" else budget.committed_mb) * MIB

    def _count(self, runtime: Runtime, state: PoolState) -> int:
        """Return the number of containers of a runtime in a state, for the metrics."""
        match state:
            case "idle":
                return len(self._inventory.idle(runtime))
            case "busy":
                return self._inventory.busy(runtime)
            case "starting":
                return self._creation.starting(runtime)


def _needed_mb(pooled: PooledContainer, binding: Binding) -> int:
    """Return the memory that a container takes from the budget while it is bound and its job runs, MiB."""
    if pooled.container.group is None:
        return binding.needed_mb
    return charges.busy_mb(binding.needed_mb, pooled.container.held_bytes)


async def _done_within(seconds: float, tasks: Iterable[asyncio.Task[None]]) -> None:
    """Wait for tasks, and cancel the tasks that have not ended in time."""
    if waiting := set(tasks):
        _, late = await asyncio.wait(waiting, timeout=seconds)
        for task in late:
            task.cancel()
