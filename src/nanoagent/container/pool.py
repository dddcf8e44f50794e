"""The warm pool: containers made ahead of time, bound to a function by their first job, thrown away in doubt.

A container's states::

    starting ─► generic ─► bound, busy ◄─► bound, idle ─► retired
                (idle)

* **Creation is off the job's path.** Refills keep `WARM_POOL_*_SIZE` generic containers per runtime ready;
  a job that finds none waits for the next one to come up (cold).
* **One function per container**: `Binding.key` is function id, code digest, runtime and memory size.
* **The budget** is the sum of the memory limits of all containers, whatever they do, and of what they hold
  beside a run (interpreters that wait, the code), once that is known; when a job needs room, the least
  valuable idle container goes first (`policy.victims`).
* **The number** of containers is bounded as well, because each holds file descriptors of the worker. Before
  another is made, an idle one is evicted, and the pool waits for its removal.
* **A circuit breaker** per runtime opens when creation keeps failing: the runtime's jobs return to the queue
  at once with the reason, readiness and metrics say so, and one creation is tried after a growing pause.
* **The engine** is asked every few seconds whether it is there. While it is not, no job is taken, those that
  wait for a container go back, and nothing counts; when it is back, everything begins anew, and what could
  not be removed meanwhile is.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections import deque
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import structlog

from nanoagent.background import Background, TaskName
from nanoagent.container import engine
from nanoagent.container.binder import Binder
from nanoagent.container.budget import Budget
from nanoagent.container.inventory import Inventory
from nanoagent.container.policy import (
    GENERIC_MEMORY_MB,
    CircuitBreaker,
    ContainerState,
    Pooled,
    idle_for,
)
from nanoagent.container.retirement import Retirement
from nanoagent.container.shared import Changes, Shared
from nanoagent.container.spec import ContainerSpec
from nanoagent.container.strays import Strays
from nanoagent.errors import ContainerError, ContainerNotMade, ReturnToQueue
from nanoagent.job import Runtime
from nanoagent.result import Isolation, Start
from nanoagent.returns import ReturnReason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from nanoagent.container.base import Driver, RunningContainer
    from nanoagent.container.policy import Binding, PoolPolicy
    from nanoagent.container.slot import Slot, WorkerHome
    from nanoagent.telemetry.metrics import Metrics, PoolState
    from nanoagent.telemetry.status import Health

log = structlog.get_logger(__name__)

_PARALLEL_CREATIONS: Final = 2  # more only queue up in the engine, and slow the jobs that run
_EVENTS_RETRY_S: Final = 1.0
_ENGINE_EVERY_S: Final = 5.0
_ENGINE_PATIENCE_S: Final = 10.0  # a milliseconds' answer; on a machine that is overloaded it takes longer
_CLOSE_S: Final = 20.0  # what an engine that hangs does not remove by then, the next worker finds
# Counted on from anywhere: no two containers of a worker have the same while both are there.
_UIDS: Final = itertools.count(secrets.randbelow(2**31))


@dataclass(slots=True)
class Lease:
    """A container that one run has to itself.

    Attributes:
        container: The engine's part of it.
        start: Where it came from.
        clean: Set by the user of the lease when nothing of the run is left; else it is retired.
        reuse: Whether the pool would keep it after a clean run.
        isolation: What stands between this run and any other.
    """

    container: RunningContainer
    start: Start
    reuse: bool
    isolation: Isolation = Isolation.SHARED
    clean: bool = False


@dataclass(slots=True)
class _Fleet:
    """One runtime's containers."""

    starting: set[asyncio.Task[Any]] = field(default_factory=set)
    waiters: deque[asyncio.Future[Pooled]] = field(default_factory=deque)
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker)


def generic_spec(policy: PoolPolicy, home: WorkerHome, runtime: Runtime, slot: Slot) -> ContainerSpec:
    """What a container of that runtime is made from before it belongs to a function."""
    uids = engine.container_uids(policy.uid_base)
    return ContainerSpec(
        runtime=runtime,
        image=policy.images[runtime],
        name=f"nanoagent-{runtime}-{slot.path.name}",
        worker_id=home.path.name,
        home=home.path,
        slot=slot.path,
        # An id that no other container has: the kernel counts pipes, locks and watches per user.
        uid=uids[next(_UIDS) % len(uids)],
        memory_mb=GENERIC_MEMORY_MB,
        cpus=policy.generic_cpus,
        limits=policy.limits,
        isolation=policy.isolation,
        apparmor=policy.apparmor,
        docker_runtime=policy.docker_runtime,
        modules=policy.modules if runtime is Runtime.PYTHON else (),
        doors=policy.doors,
    )


class Pool:
    """See the module's docstring.

    Args:
        driver: Makes containers.
        home: Where slot folders lie.
        policy: The settings.
        metrics: Counts starts, retirements, states.
        health: Is told when containers cannot be made.
        background: Starts the pool's tasks.
        clock: Monotonic seconds.
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
        self._driver = driver
        self._home = home
        self._policy = policy
        self._metrics = metrics
        self._health = health
        self._background = background or Background()
        self._clock = clock
        self._fleets = {runtime: _Fleet() for runtime in Runtime}
        shared = Shared(
            driver=driver,
            home=home,
            policy=policy,
            metrics=metrics,
            background=self._background,
            clock=clock,
            inventory=Inventory(),
            budget=Budget(policy.memory_mb, policy.most_containers),
            changes=Changes(),
            strays=Strays(driver, home),
        )
        self._inventory, self._budget, self._changes = shared.inventory, shared.budget, shared.changes
        self._strays = shared.strays
        self._binder = Binder(shared)
        self._retirement = Retirement(shared, self._refill)
        self._creations = asyncio.Semaphore(_PARALLEL_CREATIONS)
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._engine_away: str | None = None
        self._in_doubt = asyncio.Event()  # whether the engine is there
        self._closing = False
        self._filled = False
        metrics.watch_pool(self._count)

    # --- life

    async def start(self) -> None:
        """Begin to fill the pool, to retire what is old and to hear of deaths."""
        keep = self._background.keep
        self._tasks = (
            keep(TaskName.POOL_SWEEP, self._retirement.sweep),
            keep(TaskName.ENGINE_EVENTS, self._hear_deaths),
            keep(TaskName.ENGINE_CHECK, self._watch_engine),
        )
        self._refill()

    async def filled(self) -> None:
        """Wait until every runtime has its generic containers, or creation keeps failing; then say so."""
        while any(self._is_filling(runtime) for runtime in Runtime):
            await self._changes.wait()
        self._filled = True
        self._report_breakers()

    def _is_filling(self, runtime: Runtime) -> bool:
        fleet = self._fleets[runtime]
        is_short = self._inventory.generic(runtime) < self._policy.sizes[runtime]
        return is_short and bool(fleet.starting) and not fleet.breaker.is_broken

    async def close(self) -> None:
        """Remove every container. Idempotent."""
        self._closing = True
        tasks = [*self._tasks, *(task for fleet in self._fleets.values() for task in fleet.starting)]
        for task in tasks:
            task.cancel()
        await _done_within(_CLOSE_S, tasks)
        for fleet in self._fleets.values():
            for waiter in fleet.waiters:
                if not waiter.done():
                    waiter.set_exception(ContainerNotMade("the pool is closed"))
        for pooled in self._inventory.all():
            self._retirement.retire(pooled, "closing")
        await _done_within(_CLOSE_S, self._retirement.removals)

    # --- leases

    @asynccontextmanager
    async def lease(self, binding: Binding) -> AsyncIterator[Lease]:
        """A container for one run, with the code in place.

        The caller sets `clean` when the container may serve again; in every other case it is removed.

        Raises:
            ContainerNotMade: One could not be made.
            ContainerError: One could not be bound to what it is for.
            ReturnToQueue: Making them keeps failing, and it is too early to try again.
        """
        pooled, start = await self._acquire(binding)
        reuse = self._would_keep(pooled, binding)
        lease = Lease(pooled.container, start, reuse, self.between_runs)
        try:
            if pooled.key != binding.key:
                await self._binder.bind(pooled, binding)
            self._metrics.container_start(binding.runtime, start)
            yield lease
        finally:
            pooled.runs += 1
            pooled.used_at = self._clock()
            self._release(pooled, lease)
            self._changes.notify()

    def _release(self, pooled: Pooled, lease: Lease) -> None:
        """Keep the container of a job that has ended, or retire it."""
        is_dead = pooled.state is ContainerState.DEAD
        if not lease.clean:
            self._retirement.retire(pooled, "died" if is_dead else "unclean")
        elif not lease.reuse or self._closing:
            self._retirement.retire(pooled, "runs")
        elif is_dead:
            self._retirement.retire(pooled, "died")
        else:
            self._inventory.put_back(pooled)

    def _would_keep(self, pooled: Pooled, binding: Binding) -> bool:
        kept = self._policy.keeps_containers and pooled.runs + 1 < self._policy.max_runs
        return binding.purpose == "run" and kept

    async def _acquire(self, binding: Binding) -> tuple[Pooled, Start]:
        pooled = idle_for(binding, self._inventory.idle(binding.runtime), self._policy.sharing)
        if pooled is None:
            pooled = await self._next_created(self._fleets[binding.runtime])
            await self._resize(pooled, binding)
            return pooled, Start.COLD
        self._inventory.take(pooled)
        if pooled.key == binding.key:
            return pooled, Start.HOT
        if pooled.is_generic:
            self._refill()
        await self._resize(pooled, binding)
        return pooled, Start.WARM

    async def _next_created(self, fleet: _Fleet) -> Pooled:
        if self._closing:
            raise ContainerNotMade("the pool is closed")
        if self._engine_away is not None:
            raise ReturnToQueue(self._engine_away, reason=ReturnReason.ENGINE_UNAVAILABLE)
        if not fleet.breaker.allows(self._clock(), len(fleet.starting)):
            # Nothing was tried, and another worker may be able to.
            reason = f"containers cannot be made: {fleet.breaker.reason}"
            raise ReturnToQueue(reason, reason=self._why_none())
        waiter: asyncio.Future[Pooled] = asyncio.get_running_loop().create_future()
        fleet.waiters.append(waiter)
        self._refill()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._retirement.retire(waiter.result(), "unclean")
            raise
        finally:
            if waiter in fleet.waiters:
                fleet.waiters.remove(waiter)

    async def _resize(self, pooled: Pooled, binding: Binding) -> None:
        """Count the container with the size that it is to have; wait until that fits."""
        memory_mb = min(binding.needed_mb, self._policy.memory_mb)
        try:
            await self._retirement.make_room(memory_mb - pooled.memory_mb)
        except BaseException:
            self._retirement.retire(pooled, "unclean")
            raise
        self._budget.resize(pooled, memory_mb)

    def evict(self, number: int) -> None:
        """Evict up to that many idle containers."""
        self._retirement.evict(0, number)

    # --- creation

    def _refill(self) -> None:
        """Start as many creations as are wanted and allowed."""
        for runtime, fleet in self._fleets.items():
            while not self._closing and self._wants_another(runtime, fleet):
                creation = self._create(runtime)
                task = self._background.once(TaskName.CONTAINER_CREATION, creation, fleet.starting)
                task.add_done_callback(lambda _: self._settled())

    def _wants_another(self, runtime: Runtime, fleet: _Fleet) -> bool:
        if self._engine_away is not None or not fleet.breaker.allows(self._clock(), len(fleet.starting)):
            return False
        if len(fleet.starting) < len(fleet.waiters):
            return True
        spare = self._inventory.generic(runtime) + len(fleet.starting) - len(fleet.waiters)
        planned = sum(len(other.starting) for other in self._fleets.values())
        return spare < self._policy.sizes[runtime] and self._budget.allows_refill(planned)

    async def _create(self, runtime: Runtime) -> None:
        """Make one container for the pool, or for the job that waits longest."""
        fleet = self._fleets[runtime]
        try:
            async with self._creations:
                if fleet.waiters:
                    await self._retirement.make_room(GENERIC_MEMORY_MB, containers=1)
                elif not self._budget.fits_generic():
                    return  # the room that was there when this was planned has been taken by a job
                self._budget.begin_creation()
                try:
                    container = await self._make(runtime)
                except BaseException:
                    self._budget.fail_creation()
                    raise
        except ContainerError as exc:
            self._strays.suspect()
            await self._look_at_engine()
            if self._engine_away is None:
                self._creation_failed(runtime, str(exc))
            return
        except Exception as exc:  # noqa: BLE001 - it is logged and counted there
            self._background.note_failure(TaskName.CONTAINER_CREATION, exc)
            self._creation_failed(runtime, f"an error inside the worker: {type(exc).__name__}")
            return
        if fleet.breaker.is_broken:
            log.info("containers can be made again", runtime=runtime)
        fleet.breaker.succeeded()
        self._report_breakers()
        now = self._clock()
        pooled = Pooled(container, GENERIC_MEMORY_MB, made_at=now, used_at=now)
        self._budget.finish_creation()
        self._inventory.add(pooled)
        waiting = [waiter for waiter in fleet.waiters if not waiter.done()]
        if waiting:
            self._inventory.take(pooled)
            waiting[0].set_result(pooled)
            fleet.waiters.remove(waiting[0])

    async def _make(self, runtime: Runtime) -> RunningContainer:
        policy = self._policy
        name = secrets.token_hex(5)
        slot = self._home.new_slot(name)
        try:
            container = await self._driver.create(generic_spec(policy, self._home, runtime, slot), slot)
        except BaseException:
            await asyncio.shield(slot.remove())
            raise
        if container.isolation is not policy.isolation:
            if container.group is not None:
                container.group.close()
            await self._driver.remove(container.id)
            await asyncio.shield(slot.remove())
            raise ContainerError(f"isolation has fallen since the start: {container.isolation_reason}")
        return container

    def _creation_failed(self, runtime: Runtime, reason: str) -> None:
        fleet = self._fleets[runtime]
        was_broken = fleet.breaker.is_broken
        fleet.breaker.failed(reason, self._clock())
        self._metrics.container_creation_failed()
        log.warning("container not made", runtime=runtime, reason=reason, failures=fleet.breaker.failures)
        if fleet.breaker.is_broken and not was_broken:
            log.error("containers cannot be made; jobs are given back", runtime=runtime, reason=reason)
        self._report_breakers()
        if fleet.waiters:
            waiter = fleet.waiters.popleft()
            if not waiter.done():
                waiter.set_exception(ContainerNotMade(reason))

    def _report_breakers(self) -> None:
        """Tell readiness and metrics which runtimes' containers cannot be made."""
        reasons = [] if self._engine_away is None else [self._engine_away]
        reasons += [
            f"{runtime}: {fleet.breaker.reason}"
            for runtime, fleet in self._fleets.items()
            if fleet.breaker.is_broken
        ]
        self._metrics.pool_breaker(is_open=bool(reasons))
        if reasons or self._filled:
            self._health.set("containers", ok=not reasons, reason="; ".join(reasons))

    def _settled(self) -> None:
        """A creation or a removal has ended, well or badly."""
        self._changes.notify()
        self._refill()

    # --- deaths

    async def _hear_deaths(self) -> None:
        """Follow the engine's events for good; while it is not to be heard, say so."""
        while True:
            try:
                async for container_id in self._driver.deaths():
                    self._died(container_id)
            except ContainerError as exc:
                log.warning("Docker's events are not to be heard", reason=str(exc))
            self._strays.suspect()
            self._in_doubt.set()
            await asyncio.sleep(_EVENTS_RETRY_S)

    def _died(self, container_id: str) -> None:
        pooled = self._inventory.get(container_id)
        if pooled is None:
            return
        log.warning("container died", container=container_id[:12], runtime=pooled.runtime)
        if pooled.state is ContainerState.IDLE:
            self._retirement.retire(pooled, "died")
        elif pooled.state is ContainerState.BUSY:  # its job retires it when it ends
            self._inventory.note_death(pooled)

    # --- the engine

    async def _watch_engine(self) -> None:
        """Ask every few seconds, and at once when there is doubt, whether the engine is there."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_ENGINE_EVERY_S):
                    await self._in_doubt.wait()
            self._in_doubt.clear()
            await self._look_at_engine()
            if self._engine_away is None:
                await self._strays.remove()

    async def _look_at_engine(self) -> None:
        try:
            async with asyncio.timeout(_ENGINE_PATIENCE_S):
                await self._driver.ping()
        except ContainerError as exc:
            self._engine_lost(str(exc))
        except TimeoutError:
            self._engine_lost(f"Docker has not answered for {_ENGINE_PATIENCE_S:.0f} s")
        else:
            self._engine_found()

    def _engine_lost(self, reason: str) -> None:
        if self._engine_away is None:
            log.error("Docker is away; no jobs are taken", reason=reason)
        self._engine_away = f"{reason}; systemctl status docker"
        self._report_breakers()
        for fleet in self._fleets.values():
            while fleet.waiters:  # another worker may have one for them
                waiter = fleet.waiters.popleft()
                if not waiter.done():
                    waiter.set_exception(
                        ReturnToQueue(self._engine_away, reason=ReturnReason.ENGINE_UNAVAILABLE)
                    )

    def _engine_found(self) -> None:
        if self._engine_away is None:
            return
        log.info("Docker is back")
        self._engine_away = None
        self._strays.suspect()
        for fleet in self._fleets.values():
            fleet.breaker.succeeded()
        self._report_breakers()
        self._refill()

    # --- small things

    def _why_none(self) -> ReturnReason:
        """The reason of a return: no containers of one runtime, or of any."""
        others = any(not breaker.is_broken for breaker in self._breakers())
        return ReturnReason.NO_CONTAINERS_OF_RUNTIME if others else ReturnReason.NO_CONTAINERS

    def _breakers(self) -> list[CircuitBreaker]:
        """The breakers of the runtimes that are kept ready; of all runtimes if no containers are."""
        kept_ready = [self._fleets[runtime] for runtime, size in self._policy.sizes.items() if size]
        return [fleet.breaker for fleet in kept_ready or self._fleets.values()]

    @property
    def between_runs(self) -> Isolation:
        """What stands between one run and the next."""
        return self._policy.between_runs

    @property
    def broken(self) -> str | None:
        """Why no job at all can be run at present, or None.

        A runtime whose containers cannot be made does not stop the others; and once its breaker lets
        another be tried, it takes a job to try it.
        """
        if self._engine_away is not None:
            return self._engine_away
        now = self._clock()
        breakers = self._breakers()
        return breakers[0].reason if all(breaker.is_open(now) for breaker in breakers) else None

    def _count(self, runtime: Runtime, state: PoolState) -> int:
        """How many containers of a runtime are in a state, for the metrics."""
        match state:
            case "idle":
                return len(self._inventory.idle(runtime))
            case "busy":
                return self._inventory.busy(runtime)
            case "starting":
                return len(self._fleets[runtime].starting)


async def _done_within(seconds: float, tasks: Iterable[asyncio.Task[None]]) -> None:
    """Wait for tasks, but not for ever; those that are left are cancelled."""
    if waiting := set(tasks):
        _, late = await asyncio.wait(waiting, timeout=seconds)
        for task in late:
            task.cancel()
