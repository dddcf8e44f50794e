"""Creates or recycles containers for jobs that wait, and generic containers to keep ready."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from typing import TYPE_CHECKING, Any, Final

from nanoagent.container import charges, engine
from nanoagent.container.policy import GENERIC_MEMORY_MB, PooledContainer, may_recycle
from nanoagent.container.spec import ContainerSpec
from nanoagent.host.background import TaskName
from nanoagent.host.shielding import uninterrupted
from nanoagent.model.errors import ContainerError, ContainerNotMade
from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from nanoagent.container.availability import Availability
    from nanoagent.container.base import RunningContainer
    from nanoagent.container.charges import IdleMemory
    from nanoagent.container.engine_watch import EngineWatch
    from nanoagent.container.policy import PoolPolicy
    from nanoagent.container.pool_context import PoolContext
    from nanoagent.container.recycler import Recycler
    from nanoagent.container.retirement import Retirement
    from nanoagent.container.work_directory import WorkDirectory
    from nanoagent.container.worker_home import WorkerHome

_PARALLEL_CREATIONS: Final = 2  # more creations would wait in Docker, and slow down running jobs
# Counts up, so that no two containers of a worker have the same user ID. Starts at a random number, so that
# the user IDs of two workers on a machine most likely differ.
_UIDS: Final = itertools.count(secrets.randbelow(2**31))


def generic_spec(
    policy: PoolPolicy, home: WorkerHome, runtime: Runtime, work_directory: WorkDirectory
) -> ContainerSpec:
    """Return the specification of a generic container.

    Args:
        policy: The settings of the pool.
        home: The folder of the worker.
        runtime: The runtime.
        work_directory: The work directory of the container.
    """
    uids = engine.container_uids(policy.uid_base)
    return ContainerSpec(
        runtime=runtime,
        image=policy.images[runtime],
        name=f"nanoagent-{runtime}-{work_directory.path.name}",
        worker_id=home.path.name,
        home=home.path,
        work_directory=work_directory.path,
        # Each container has its own user ID, because the kernel limits pipes, locks and watches per user.
        uid=uids[next(_UIDS) % len(uids)],
        memory_mb=GENERIC_MEMORY_MB,
        cpus=policy.generic_cpus,
        limits=policy.limits,
        isolation=policy.isolation,
        apparmor=policy.apparmor,
        docker_runtime=policy.docker_runtime,
        modules=policy.modules if runtime is Runtime.PYTHON else (),
        listening_addresses=policy.listening_addresses,
    )


class Creation:
    """Creates containers in the background. It owns the creations and recyclings that are under way.

    Refills keep as many generic containers ready as `WantedGeneric` says. A job that finds no container waits
    for the next one. If the budget has no room, an idle container is recycled for the job, or idle containers
    are evicted for a new one (`Recycler`). A refill evicts none. But if jobs have needed generic containers
    lately, it recycles idle ones.

    Args:
        context: The collaborators and the state that the parts of the pool share.
        availability: Decides whether containers can be created, and gets the outcome of each creation.
        watch: Checks whether Docker answers, after a creation has failed.
        retirement: Makes room in the budget.
        recycler: Recycles containers.
    """

    def __init__(
        self,
        context: PoolContext,
        availability: Availability,
        watch: EngineWatch,
        retirement: Retirement,
        recycler: Recycler,
    ) -> None:
        self._context = context
        self._policy = context.policy
        self._inventory = context.inventory
        self._budget = context.budget
        self._waiting = context.waiting
        self._availability = availability
        self._watch = watch
        self._retirement = retirement
        self._recycler = recycler
        self._starting: dict[Runtime, set[asyncio.Task[Any]]] = {runtime: set() for runtime in Runtime}
        self._parallel = asyncio.Semaphore(_PARALLEL_CREATIONS)
        self._is_stopped = False

    # --- for the pool

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._is_stopped

    def starting(self, runtime: Runtime) -> int:
        """Return the number of creations and recyclings for a runtime that are under way."""
        return len(self._starting[runtime])

    def is_filling(self, runtime: Runtime) -> bool:
        """Whether the pool still waits for generic containers of a runtime.

        True while some are missing, creations are under way, and creations do not keep failing.
        """
        is_short = self._inventory.generic(runtime) < self._policy.sizes[runtime]
        return is_short and self.starting(runtime) > 0 and not self._availability.is_failing(runtime)

    async def next_container(self, runtime: Runtime) -> PooledContainer:
        """Wait for a new container of a runtime. Jobs that have waited longer get their containers first.

        Raises:
            ContainerNotMade: The container could not be created.
            ReturnToQueue: Containers cannot be created at present.
        """
        if self._is_stopped:
            raise ContainerNotMade("the pool is closed")
        self._availability.refuse_unavailable(runtime, self.starting(runtime))
        waiter = self._waiting.add(runtime)
        self.refill()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._retirement.retire(waiter.result(), "unclean")
            raise
        finally:
            self._waiting.discard(runtime, waiter)

    def stop(self) -> list[asyncio.Task[Any]]:
        """Cancel all creations, and create no more containers.

        Returns:
            The tasks of the cancelled creations.
        """
        self._is_stopped = True
        tasks = [task for tasks in self._starting.values() for task in tasks]
        for task in tasks:
            task.cancel()
        return tasks

    # --- refill

    def refill(self) -> None:
        """Start all creations that waiting jobs and the pool need and that are allowed now."""
        for runtime in Runtime:
            while not self._is_stopped and self._needs_another(runtime):
                self._begin(runtime, self._create(runtime))

    def recycle_unused(self, pooled: PooledContainer) -> bool:
        """Begin to recycle an idle container that would be retired, if a generic container is wanted.

        Returns:
            Whether it will be recycled.
        """
        runtime = pooled.runtime
        ready = self._inventory.generic(runtime) + self.starting(runtime) - self._waiting.count(runtime)
        if self._is_stopped or ready >= self._context.wanted.number(runtime):
            return False
        if not may_recycle(pooled, self._policy, self._context.clock()):
            return False
        self._begin(runtime, self._create(runtime, pooled))
        return True

    def _begin(self, runtime: Runtime, creation: Coroutine[Any, Any, None]) -> None:
        task = self._context.background.once(TaskName.CONTAINER_CREATION, creation, self._starting[runtime])
        task.add_done_callback(lambda _: self._ended())

    def _needs_another(self, runtime: Runtime) -> bool:
        """Whether one more creation for a runtime is needed and allowed."""
        starting, waiting = self.starting(runtime), self._waiting.count(runtime)
        if not self._availability.allows(runtime, starting):
            return False
        if starting < waiting:
            return True
        left_for_pool = self._inventory.generic(runtime) + starting - waiting
        planned = sum(map(len, self._starting.values()))
        if left_for_pool < self._context.wanted.number(runtime) and self._budget.allows_refill(planned):
            return True
        is_lately_taken = left_for_pool < self._context.wanted.lately_taken(runtime)
        return is_lately_taken and self._recycler.candidate(runtime) is not None

    def _ended(self) -> None:
        self._context.changes.notify()
        self.refill()

    # --- one creation

    async def _create(self, runtime: Runtime, unused: PooledContainer | None = None) -> None:
        """Create or recycle one container for the pool, or for the job that has waited longest.

        Args:
            runtime: The runtime.
            unused: A container to recycle first of all, because its function is unused.
        """
        try:
            pooled = await self._make(runtime, unused)
        except ContainerError as exc:
            self._context.strays.suspect()
            await self._watch.check()
            if self._availability.engine_problem is None:
                self._failed(runtime, str(exc))
        except Exception as exc:  # noqa: BLE001 - `note_failure` logs and counts it
            self._context.background.note_failure(TaskName.CONTAINER_CREATION, exc)
            self._failed(runtime, f"an error inside the worker: {type(exc).__name__}")
        else:
            if pooled is not None:
                self._hand_out(pooled)

    async def _make(self, runtime: Runtime, unused: PooledContainer | None) -> PooledContainer | None:
        """Recycle a container, or create one. Return None if no job waits and the budget has no room."""
        async with self._parallel:
            recycled = unused or self._recycled_first(runtime)
            while recycled is not None:
                if await self._recycler.recycle(recycled):
                    return recycled
                recycled = self._recycled_first(runtime)
            return await self._create_if_it_fits(runtime)

    def _recycled_first(self, runtime: Runtime) -> PooledContainer | None:
        """Return the container to recycle instead of a creation; None if there is none."""
        is_missing = self._inventory.generic(runtime) < self._context.wanted.number(runtime)
        is_needed = self._waiting.count(runtime) > 0 or is_missing
        return self._recycler.candidate(runtime) if is_needed else None

    async def _create_if_it_fits(self, runtime: Runtime) -> PooledContainer | None:
        """Create a container. Return None if no job waits and the budget has no room for a refill."""
        if self._waiting.count(runtime):
            await self._retirement.make_room(GENERIC_MEMORY_MB, containers=1)
        elif not self._budget.fits_generic():
            return None
        self._budget.begin_creation()
        try:
            container = await self._create_container(runtime)
        except BaseException:
            self._budget.fail_creation()
            raise
        return self._added(runtime, container)

    async def _create_container(self, runtime: Runtime) -> RunningContainer:
        driver, home, policy = self._context.driver, self._context.home, self._policy
        work_directory = home.new_work_directory(secrets.token_hex(5))
        begun = self._context.clock()
        try:
            container = await driver.create(
                generic_spec(policy, home, runtime, work_directory), work_directory
            )
        except BaseException:
            await uninterrupted(work_directory.remove())
            raise
        container.created_ms = (self._context.clock() - begun) * 1000
        if container.isolation is not policy.isolation:
            if container.group is not None:
                container.group.close()
            await driver.remove(container.id)
            await uninterrupted(work_directory.remove())
            reason = container.isolation_reason
            raise ContainerError(f"the isolation level is lower than at the start of the worker: {reason}")
        return container

    def _added(self, runtime: Runtime, container: RunningContainer) -> PooledContainer:
        """Add a new container to the pool."""
        self._availability.creation_succeeded(runtime)
        now = self._context.clock()
        pooled = PooledContainer(container, GENERIC_MEMORY_MB, made_at=now, used_at=now)
        self._budget.finish_creation()
        if container.idle_memory is not None:
            container.generic_bytes = _held_bytes(container.idle_memory)
            container.base_bytes = container.held_bytes = container.generic_bytes
        self._budget.resize(pooled, charges.of_idle(pooled))
        self._inventory.add(pooled)
        self._recycler.note_created(pooled)
        return pooled

    def _hand_out(self, pooled: PooledContainer) -> None:
        """Give a generic container to the job that has waited longest. If no job waits, it stays idle."""
        waiter = self._waiting.take_first(pooled.runtime)
        if waiter is not None:
            self._inventory.take(pooled)
            waiter.set_result(pooled)

    def _failed(self, runtime: Runtime, reason: str) -> None:
        self._availability.creation_failed(runtime, reason)
        self._waiting.fail_first(runtime, ContainerNotMade(reason))


def _held_bytes(memory: IdleMemory) -> int:
    """Return the memory that a new container holds; 0 if it has just died."""
    try:
        return memory.held_bytes()
    except OSError:
        return 0
